"""The reader study: the blinded page, the key, and the scores."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import write_json
from simulations.studies.reader.export import export_reader_study
from simulations.studies.reader.page import CHOICES, QUESTIONS, reader_page
from simulations.studies.reader.pairs import EXTERNAL, METHODS, OURS, Item, Pairs, draw_items
from simulations.studies.reader.score import score_answers
from unit.simulations.studies.test_generation import make_run

SHADES = {OURS: 0.2, EXTERNAL: 0.8}


def pairs(count: int) -> Pairs:
    """Images that tell the method by their shade."""
    flat = torch.ones(count, 1, 16, 16)
    return Pairs(flat * 0.5, {name: flat * shade for name, shade in SHADES.items()})


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 2**31))
def test_every_pair_is_shown_and_sides_are_balanced(count: int, repeats: int, seed: int) -> None:
    items = draw_items(count, repeats, seed)
    first, again = items[:count], items[count:]
    assert sorted(item.pair for item in first) == list(range(count))
    lefts = [item.left for item in first]
    assert abs(lefts.count(OURS) - lefts.count(EXTERNAL)) <= 1
    assert len(again) == min(count, repeats)
    for item, before in zip(again, first, strict=False):
        assert (item.pair, item.left) == (before.pair, before.right)
    assert items == draw_items(count, repeats, seed)


def test_the_page_has_each_image_at_the_side_in_the_key_and_no_method() -> None:
    items = [Item(0, OURS), Item(1, EXTERNAL), Item(0, EXTERNAL)]
    page = reader_page("abc", items, pairs(2), ["Asked for: <b>", "Asked for: add Mass"])
    shown = [
        Image.open(io.BytesIO(base64.b64decode(data))).convert("L").getpixel((50, 50)) / 255
        for data in re.findall(r'base64,([^"]+)"', page)
    ]
    expected = [shade for item in items for shade in (0.5, SHADES[item.left], SHADES[item.right])]
    assert shown == pytest.approx(expected, abs=0.01)
    assert not any(re.search(rf"\b{method}\b", page) for method in METHODS)
    assert "Asked for: &lt;b&gt;" in page and "<b>" not in page
    names = set(re.findall(r'type="radio" name="([^"]+)" value="(\w+)"', page))
    assert names == {(f"{n}.{q}", c) for n in range(3) for q in QUESTIONS for c in CHOICES}


# Scores


def write_key(folder: Path, items: list[Item], count: int) -> None:
    shown = [{"pair": item.pair, "left": item.left} for item in items]
    write_json(folder / "key.json", {"study": "abc", "seed": 0, "pairs": count, "items": shown})


def write_answers(path: Path, answers: dict[str, str], study: str = "abc") -> Path:
    write_json(path, {"study": study, "reader": path.stem, "answers": answers})
    return path


def liking(items: list[Item], method: str) -> dict[str, str]:
    """Of a reader who always finds one method."""
    return {
        f"{number}.{question}": "left" if item.left == method else "right"
        for number, item in enumerate(items)
        for question in QUESTIONS
    }


def test_who_always_prefers_ours_scores_one(tmp_path: Path) -> None:
    items = draw_items(8, 3, seed=1)
    write_key(tmp_path, items, 8)
    fan = write_answers(tmp_path / "fan.json", liking(items, OURS))
    page = score_answers(tmp_path, [fan])
    scores = json.loads((tmp_path / "scores.json").read_text())
    for question in QUESTIONS:
        assert scores["all"][question] == {"preference": 1.0, "low": 1.0, "high": 1.0, "pairs": 8}
        one = scores["readers"]["fan"][question]
        assert (one["ours"], one["external"], one["equal"], one["unanswered"]) == (8, 0, 0, 0)
        assert one["sign_test_p"] == pytest.approx(2 / 2**8)
        assert (one["repeated_alike"], one["repeated"]) == (3, 3)
    assert "+1.00 (+1.00 to +1.00)" in page.read_text()


def test_readers_who_disagree_cancel_and_repeats_count_once(tmp_path: Path) -> None:
    items = draw_items(6, 6, seed=2)
    write_key(tmp_path, items, 6)
    left = {f"{number}.{q}": "left" for number in range(len(items)) for q in QUESTIONS}
    files = [
        write_answers(tmp_path / "fan.json", liking(items, OURS)),
        write_answers(tmp_path / "foe.json", liking(items, EXTERNAL)),
        write_answers(tmp_path / "lazy.json", left),
        write_answers(tmp_path / "silent.json", {"0.change": "equal"}),
    ]
    score_answers(tmp_path, files)
    scores = json.loads((tmp_path / "scores.json").read_text())
    # The lazy reader prefers each method on half of the pairs, and never the same one again.
    lazy = scores["readers"]["lazy"]["rest"]
    assert (lazy["ours"], lazy["external"], lazy["sign_test_p"]) == (3, 3, 1.0)
    assert (lazy["repeated_alike"], lazy["repeated"]) == (0, 6)
    assert scores["all"]["rest"]["preference"] == pytest.approx(0.0)
    silent = scores["readers"]["silent"]
    assert (silent["change"]["equal"], silent["change"]["unanswered"]) == (1, 5)
    assert silent["rest"]["sign_test_p"] is None


def test_without_answers_nothing_is_measured(tmp_path: Path) -> None:
    items = draw_items(2, 0, seed=0)
    write_key(tmp_path, items, 2)
    page = score_answers(tmp_path, [write_answers(tmp_path / "a.json", {})])
    assert "not measured (not measured to not measured) | 0 |" in page.read_text()


def test_answers_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    items = draw_items(2, 0, seed=0)
    with pytest.raises(UserError, match=r"key\.json does not exist"):
        score_answers(tmp_path, [])
    write_key(tmp_path, items, 2)
    other = write_answers(tmp_path / "other.json", {}, study="xyz")
    with pytest.raises(UserError, match="answers to study xyz, this one is abc"):
        score_answers(tmp_path, [other])
    good = write_answers(tmp_path / "good.json", liking(items, OURS))
    with pytest.raises(UserError, match="two files of one reader: good, good"):
        score_answers(tmp_path, [good, good])
    bad = write_answers(tmp_path / "bad.json", {"0.change": "ours"})
    with pytest.raises(UserError, match="is not what a reader study writes"):
        score_answers(tmp_path, [bad])
    assert not (tmp_path / "scores.json").exists()


# The whole


def test_a_run_gives_a_page_and_a_key(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", tiny)
    page = export_reader_study(run, tmp_path / "out", 4, 1, 2, 0, "cpu")
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    text = page.read_text()
    assert text.count("<section") == len(key["items"]) == 5
    assert key["study"] in text
    pictures = re.findall(r'base64,([^"]+)"', text)
    assert len(set(pictures)) == 4 * 3  # two counterfactuals that differ, and their source
    assert pictures[-2:] == [pictures[2], pictures[1]]
    with pytest.raises(UserError, match="exists; remove it"):
        export_reader_study(run, tmp_path / "out", 4, 1, 2, 0, "cpu")
    blind = make_run(tmp_path / "blind", tiny, "training.joint.classification_weight=0")
    with pytest.raises(UserError, match="one half of its network"):
        export_reader_study(blind, tmp_path / "other", 4, 1, 2, 0, "cpu")
