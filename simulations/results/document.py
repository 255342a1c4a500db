"""`fed-mediffusion results`: the README's sections of results, written from what is on disk."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.marked_sections import read_section, replace_sections
from simulations.engine.simulate import LAUNCH
from simulations.results.figures import NOT_MEASURED, format_comparison, format_figure
from simulations.results.study_tables import (
    counterfactual_tables,
    explanation_tables,
    made_by,
    read_finished,
    read_study,
    sample_tables,
)
from simulations.studies.labels.comparison import NOT_RUN, row_cells

LABELS = "Methods at shares of labels, `"
"""Begins the tables of a study of labels; its command follows."""
LOCAL = ("run.folder=", "data.store=", "evaluation.inception_weights=")


@dataclass(frozen=True)
class Sources:
    """Folders of what is to stand in a document."""

    runs: Sequence[Path] = ()
    study: Path | None = None
    """Of unlabelled images."""
    labels: Sequence[Path] = ()
    counterfactuals: Sequence[Path] = ()
    """Studies of guidance."""
    explanations: Sequence[Path] = ()
    samples: Sequence[Path] = ()
    """Studies of generation."""


def write_results(sources: Sources, document: Path) -> Path:
    """Replaces what stands between a document's marks by tables of what is given.

    A section nothing is given of is left as it is, and in those of runs and labels what other
    commands have made: it takes hours, and not all of it is made anew for one table. They are named
    as in `Sources`, but `results`, which has the runs, and `unlabelled`.

    Returns:
        The document.

    Raises:
        UserError: the document lacks the marks, a run or study is not there or not completed, or
            two of one kind have the same command.
    """
    sections = {}
    if sources.runs:
        sections["results"] = _run_table(document, sources.runs)
    if sources.study is not None:
        sections["unlabelled"] = _study_table(sources.study)
    if sources.labels:
        sections["labels"] = _labels_section(document, sources.labels)
    if sources.counterfactuals:
        sections["counterfactuals"] = counterfactual_tables(sources.counterfactuals)
    if sources.explanations:
        sections["explanations"] = explanation_tables(sources.explanations)
    if sources.samples:
        sections["samples"] = sample_tables(sources.samples)
    if not sections:
        raise UserError("no run and no study is named, of which a table could be written")
    replace_sections(document, sections)
    return document


def _run_table(document: Path, runs: Sequence[Path]) -> str:
    head = [
        "| command | macro AUC (95 %) | FID; untrained; real | PSNR | flipped | min | made by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    standing = read_section(document, "results").splitlines()
    commands = [_command(run) for run in runs]
    _refuse_two("runs", commands)
    rows = {line.split("`")[1]: line for line in standing if line.startswith("| `")}
    for command, run in zip(commands, runs, strict=True):
        figures = read_finished(run / "summary.json", "run")
        if figures.get("status") != "completed":
            raise UserError(f"{run} is no completed run (status {figures.get('status')})")
        distances = [figures[name] for name in ("fid", "fid_untrained", "fid_floor")]
        cells = [
            f"`{command}`",
            _auc(figures),
            "; ".join(format_figure(value, ".0f") for value in distances),
            format_figure(figures["psnr"], ".1f", " dB"),
            _flipped(figures["counterfactual"]),
            f"{figures['seconds'] / 60:.1f}",
            made_by(figures),
        ]
        rows[command] = f"| {' | '.join(cells)} |"
    return "\n".join([*head, *rows.values()])


def _auc(figures: dict[str, Any]) -> str:
    low, high = figures["auc_macro_interval"] or (None, None)
    measured = low is not None and high is not None
    bounds = f"{low:.3f} to {high:.3f}" if measured else NOT_MEASURED
    return f"{format_figure(figures['auc_macro'])} ({bounds})"


def _flipped(counterfactual: dict[str, Any] | None) -> str:
    if not counterfactual:  # none, or one half of the network is not trained
        return NOT_MEASURED
    return format_figure(counterfactual["flip_rate"], ".0%", f" of {counterfactual['eligible']}")


def _study_table(study: Path) -> str:
    results = read_study(study)
    command = " ".join(["fed-mediffusion study unlabelled", *_shown(results["overrides"])])
    lines = [
        f"Macro AUC with and without the unlabelled images, same labels, `{command}`:",
        "",
        "| seed | with | without | difference | made by |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows = results["runs"]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        cells = [str(first["seed"]), *format_comparison(first["auc_macro"], second["auc_macro"])]
        lines.append(f"| {' | '.join([*cells, made_by(first)])} |")
    means = results["mean_auc_macro"]
    cells = ["mean", *format_comparison(means["with"], means["without"]), ""]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _labels_section(document: Path, studies: Sequence[Path]) -> str:
    """The tables that stand there, those of the same command replaced, the other ones behind."""
    parts = re.split(rf"(?m)^(?={re.escape(LABELS)})", read_section(document, "labels"))
    kept = [part.strip("\n") for part in parts if part.startswith(LABELS)]
    written = [_labels_tables(study) for study in studies]
    _refuse_two("studies", [part.split("`")[1] for part in written])
    tables = {part.split("`")[1]: part for part in (*kept, *written)}
    return "\n\n".join(tables.values())


def _refuse_two(what: str, commands: Sequence[str]) -> None:
    """Refuses what would be silently written over: two of one command."""
    twice = [one for one in commands if commands.count(one) > 1]
    if twice:
        raise UserError(f"two of these {what} have the same command: {twice[0]}")


def _labels_tables(study: Path) -> str:
    """The study's methods and, folded away, each of its runs and trials."""
    results = read_study(study)
    command = " ".join(
        ["fed-mediffusion study labels", *_shown(results["overrides"]), *results["options"]]
    )
    lines = [
        f"{LABELS}{command}` (± deviation of the seeds; differences are "
        "paired over resampled lesions or patients, these seeds held; minutes of one core, with "
        "judging):",
        "",
        "| method | labels | macro AUC | seeds | against joint (95 %) | FID | ECE | min |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(row_cells(row))} |" for row in results["rows"]),
        "",
        "<details><summary>Each run</summary>",
        "",
        "| method | labels | macro AUC | min | made by |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(_run_cells(run))} |" for run in results["runs"] if run["seconds"]),
        "",
        "| method | trial | AUC of validation patients | chosen |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(_trial_cells(trial))} |" for trial in results["trials"]),
        "",
        "</details>",
    ]
    return "\n".join(lines)


def _run_cells(run: dict[str, Any]) -> list[str]:
    site = f" at {run['site']}" if run["site"] else ""
    auc = _auc(run) if run["auc_macro"] is not None else "-"
    share, minutes = f"{run['fraction']:.0%}", f"{run['seconds'] / 60:.1f}"
    return [run["method"] + site, share, auc, minutes, made_by(run)]


def _trial_cells(trial: dict[str, Any]) -> list[str]:
    site = f" at {trial['site']}" if trial["site"] else ""
    settings = f"`{' '.join(trial['trial'])}`" if trial["trial"] else "as it is"
    auc = NOT_RUN if trial["auc_pooled"] is None else format_figure(trial["auc_pooled"])
    return [trial["method"] + site, settings, auc, "yes" if trial["chosen"] else ""]


def _command(run: Path) -> str:
    launched = read_finished(run / LAUNCH, "run")
    name = launched["config_name"]
    chosen = [] if name == "config" else [f"--config-name {name}"]
    return " ".join(["fed-mediffusion simulate", *chosen, *_shown(launched["overrides"])])


def _shown(overrides: Sequence[str]) -> list[str]:
    """Overrides as a reader would type them: no folder of this machine among them."""
    kept = [one for one in overrides if not one.startswith(LOCAL)]
    shown = ["data.root=PATH" if one.startswith("data.root=") else one for one in kept]
    return list(dict.fromkeys(shown))
