"""`fed-mediffusion results`: tables in `docs/results`, written from runs and studies on disk."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.marked_sections import read_section, replace_sections
from simulations.engine.simulate import LAUNCH
from simulations.results.figures import (
    NOT_MEASURED,
    format_comparison,
    format_figure,
    markdown_table,
)
from simulations.results.study_tables import (
    counterfactual_tables,
    explanation_tables,
    made_by,
    read_finished,
    read_study,
    sample_tables,
)
from simulations.studies.labels.comparison import NOT_RUN, row_cells
from simulations.studies.labels.methods import JOINT

PAGES = Path("docs/results")
"""Holds a page for each section, of the section's name, below the project's folder."""
SUMMARY = "results"
"""The section of README.md, which has some columns of the table of runs."""
AUC_COLUMN = "macro AUC (95 %)"
SUMMARY_COLUMNS = ("command", AUC_COLUMN, "FID; untrained; real", "flipped", "minutes")
RUN_COLUMNS = (*SUMMARY_COLUMNS[:3], "PSNR", *SUMMARY_COLUMNS[3:], "made by")
LABELS = "Methods at shares of labels, `"
"""Begins the tables of a study of labels; its command follows."""
LOCAL = ("run.folder=", "data.store=", "evaluation.inception_weights=")


@dataclass(frozen=True)
class Sources:
    """Folders of runs and studies whose tables are to be written."""

    runs: Sequence[Path] = ()
    study: Path | None = None
    """Of unlabelled images."""
    labels: Sequence[Path] = ()
    counterfactuals: Sequence[Path] = ()
    """Studies of guidance."""
    explanations: Sequence[Path] = ()
    samples: Sequence[Path] = ()
    """Studies of generation."""


def write_results(sources: Sources, project: Path) -> list[Path]:
    """Replaces the tables of those sections for which a source is given.

    Other sections stay as they are. In the sections of runs and of labels the tables of other
    commands stay too, since they take hours to make again.

    Args:
        sources: Runs and studies.
        project: Folder with README.md and docs/results.

    Returns:
        The documents written.

    Raises:
        UserError: a document lacks its marks, a run or study is absent or not completed, or two
            of one kind have the same command.
    """
    tables = {}
    if sources.runs:
        tables["runs"] = _run_table(project / PAGES / "runs.md", sources.runs)
    if sources.study is not None:
        tables["unlabelled"] = _study_table(sources.study)
    if sources.labels:
        tables["labels"] = _labels_section(project / PAGES / "labels.md", sources.labels)
    if sources.counterfactuals:
        tables["counterfactuals"] = counterfactual_tables(sources.counterfactuals)
    if sources.explanations:
        tables["explanations"] = explanation_tables(sources.explanations)
    if sources.samples:
        tables["samples"] = sample_tables(sources.samples)
    if not tables:
        raise UserError("no run and no study is named")
    documents = {project / PAGES / f"{name}.md": {name: text} for name, text in tables.items()}
    if sources.runs:
        documents[project / "README.md"] = {SUMMARY: summary_table(tables["runs"])}
    replace_sections(documents)
    return list(documents)


def summary_table(runs: str) -> str:
    """Some columns of the table of runs, for the README, without runs that chance explains."""
    chosen = [RUN_COLUMNS.index(column) for column in SUMMARY_COLUMNS]
    rows = [line.strip("| ").split(" | ") for line in runs.splitlines()[2:]]
    shown = [row for row in rows if not _may_be_chance(row[RUN_COLUMNS.index(AUC_COLUMN)])]
    return markdown_table(SUMMARY_COLUMNS, [[row[index] for index in chosen] for row in shown])


def _may_be_chance(auc: str) -> bool:
    """Whether the interval of an AUC, as `_auc` writes it, includes 0.5."""
    ends = re.fullmatch(r"[\d.]+ \(([\d.]+) to ([\d.]+)\)", auc)
    return ends is not None and float(ends[1]) <= 0.5 <= float(ends[2])


def _run_table(document: Path, runs: Sequence[Path]) -> str:
    standing = read_section(document, "runs").splitlines()
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
    return "\n".join([markdown_table(RUN_COLUMNS, []), *rows.values()])


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
    """The standing tables with those of the same command replaced, then the new ones."""
    parts = re.split(rf"(?m)^(?={re.escape(LABELS)})", read_section(document, "labels"))
    kept = [part.strip("\n") for part in parts if part.startswith(LABELS)]
    written = [_labels_tables(study) for study in studies]
    _refuse_two("studies", [part.split("`")[1] for part in written])
    tables = {part.split("`")[1]: part for part in (*kept, *written)}
    return "\n\n".join(tables.values())


def _refuse_two(what: str, commands: Sequence[str]) -> None:
    """Refuses two of one command, since the second would replace the first."""
    twice = [one for one in commands if commands.count(one) > 1]
    if twice:
        raise UserError(f"two of these {what} have the same command: {twice[0]}")


def _labels_tables(study: Path) -> str:
    """The study's methods and, folded away, each of its runs and trials."""
    results = read_study(study)
    command = " ".join(
        ["fed-mediffusion study labels", *_shown(results["overrides"]), *results["options"]]
    )
    reference = results.get("reference", JOINT.name)  # earlier studies had no other
    lines = [
        f"{LABELS}{command}` (± standard deviation over the seeds; intervals of differences "
        "are paired bootstraps over lesions or patients at these seeds; minutes of one core, "
        "evaluation included):",
        "",
        f"| method | labels | macro AUC | seeds | against {reference} (95 %) "
        "| FID | ECE | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(f"| {' | '.join(row_cells(row))} |" for row in results["rows"]),
        "",
        '<details markdown="1"><summary>Each run</summary>',
        "",
        "| method | labels | macro AUC | minutes | made by |",
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
