"""The scores of the readers' answers: preference, its certainty, and consistency."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError
from scipy.stats import binomtest

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.classification import interval
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings.base import Count, StrictModel
from simulations.results.figures import format_figure
from simulations.studies.reader.page import QUESTIONS
from simulations.studies.reader.pairs import OURS, Item

KEY = "key.json"
Model = TypeVar("Model", bound=StrictModel)
BOOTSTRAPS = 2000


class ShownItem(StrictModel):
    """An item of the page, in the key."""

    pair: int
    left: Literal["ours", "external"]


class Key(StrictModel):
    """The method of each image on the page; readers must not get it."""

    study: str
    seed: int
    pairs: Count
    items: tuple[ShownItem, ...]


class Answers(StrictModel):
    """The file that a reader's page saves; an answer's name is `ITEM.QUESTION`."""

    study: str
    reader: str
    answers: dict[str, Literal["left", "equal", "right"]]


def score_answers(folder: Path, files: Sequence[Path]) -> Path:
    """Writes `scores.json` and `scores.md` into the study's folder; returns the page.

    Raises:
        UserError: if a file cannot be read, belongs to another study, or two are of one reader.
    """
    key = _read(folder / KEY, Key)
    given = [_read(file, Answers) for file in files]
    for file, one in zip(files, given, strict=True):
        if one.study != key.study:
            raise UserError(f"{file} has answers to study {one.study}, this one is {key.study}")
    readers = [one.reader for one in given]
    if len(set(readers)) < len(readers):
        raise UserError(f"two files of one reader: {', '.join(sorted(readers))}")
    items = [Item(item.pair, item.left) for item in key.items]
    scores = {
        "study": key.study,
        "readers": {one.reader: _of_reader(one, items, key) for one in given},
        "all": {question: _pooled(given, items, key, question) for question in QUESTIONS},
    }
    write_json(folder / "scores.json", scores)
    page = folder / "scores.md"
    page.write_text(_page(scores), encoding="utf-8")
    return page


def preferences(answers: Answers, items: Sequence[Item], question: str) -> list[int | None]:
    """For each item 1 if ours is preferred, -1 if the other is, 0 if equal, None if unanswered."""
    found: list[int | None] = []
    for number, item in enumerate(items):
        choice = answers.answers.get(f"{number}.{question}")
        sign = 1 if item.left == OURS else -1
        found.append(None if choice is None else {"left": sign, "equal": 0, "right": -sign}[choice])
    return found


def _of_reader(answers: Answers, items: Sequence[Item], key: Key) -> dict[str, Any]:
    """For each question: counts without repeats, a sign test, and the consistency of repeats."""
    figures = {}
    for question in QUESTIONS:
        liked = preferences(answers, items, question)
        first = liked[: key.pairs]
        ours, other = first.count(1), first.count(-1)
        at = {item.pair: number for number, item in enumerate(items[: key.pairs])}
        again = [
            (liked[at[item.pair]], liked[number])
            for number, item in enumerate(items)
            if number >= key.pairs
        ]
        both = [one == two for one, two in again if one is not None and two is not None]
        figures[question] = {
            "ours": ours,
            "equal": first.count(0),
            "external": other,
            "unanswered": first.count(None),
            "sign_test_p": float(binomtest(ours, ours + other).pvalue) if ours + other else None,
            "repeated_alike": sum(both),
            "repeated": len(both),
        }
    return figures


def _pooled(
    given: Sequence[Answers], items: Sequence[Item], key: Key, question: str
) -> dict[str, Any]:
    """Mean preference over readers and pairs in [-1, 1], with a bootstrap over pairs."""
    table = torch.full((len(given), key.pairs), torch.nan, dtype=torch.float64)
    for row, answers in enumerate(given):
        for number, liked in enumerate(preferences(answers, items, question)[: key.pairs]):
            if liked is not None:
                table[row, items[number].pair] = liked
    of_pair = table.nanmean(dim=0)
    of_pair = of_pair[of_pair.isfinite()]
    if not len(of_pair):
        return {"preference": None, "low": None, "high": None, "pairs": 0}
    generator = torch.Generator().manual_seed(key.seed)
    drawn = torch.randint(len(of_pair), (BOOTSTRAPS, len(of_pair)), generator=generator)
    low, high = interval(of_pair[drawn].mean(dim=1))
    return {"preference": float(of_pair.mean()), "low": low, "high": high, "pairs": len(of_pair)}


def _page(scores: Mapping[str, Any]) -> str:
    lines = [
        "# Reader study",
        "",
        "Preference: 1 if ours is always preferred, -1 if the other always is; 95 % intervals over "
        "resampled images. The sign test leaves out answers of no difference.",
        "",
        "| question | preference (95 %) | images |",
        "| --- | --- | --- |",
    ]
    for question, text in QUESTIONS.items():
        one = scores["all"][question]
        mean, low, high = (format_figure(one[k], "+.2f") for k in ("preference", "low", "high"))
        lines.append(f"| {text} | {mean} ({low} to {high}) | {one['pairs']} |")
    lines += [
        "",
        "| reader | question | ours | equal | external | unanswered | sign test | repeats alike |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for reader, figures in scores["readers"].items():
        for question, one in figures.items():
            counts = [str(one[name]) for name in ("ours", "equal", "external", "unanswered")]
            test = format_figure(one["sign_test_p"], ".3f")
            alike = f"{one['repeated_alike']} of {one['repeated']}"
            cells = [reader.replace("|", "/"), question, *counts, test, alike]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _read(path: Path, kind: type[Model]) -> Model:
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, ValidationError):
        raise UserError(f"{path} is not what a reader study writes") from None
