"""`fed-mediffusion results`: the README's section of results, written from runs on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mediffusion_core.artifacts.provenance import shorten
from mediffusion_core.errors import UserError
from simulations.figures import NOT_MEASURED, format_comparison, format_figure
from simulations.marked_section import replace_section
from simulations.simulate import LAUNCH
from simulations.study_labels.comparison import NOT_RUN, row_cells

LOCAL = ("run.folder=", "data.store=", "evaluation.inception_weights=")


def write_results(
    runs: Sequence[Path], study: Path | None, document: Path, labels: Path | None = None
) -> Path:
    """Replaces what stands between the document's two marks by tables of the runs' figures.

    Args:
        runs: Folders of completed runs.
        study: `results.json` of a study of unlabelled images, or its folder.
        document: A Markdown file with both marks.
        labels: `results.json` of a study of labels, or its folder.

    Returns:
        The document.

    Raises:
        UserError: the document has no marks, or a run or study is not there or not completed.
    """
    parts = [_run_table(runs)]
    if study is not None:
        parts.append(_study_table(study))
    if labels is not None:
        parts.append(_labels_tables(labels))
    replace_section(document, "results", "\n\n".join(parts))
    return document


def _run_table(runs: Sequence[Path]) -> str:
    lines = [
        "| command | macro AUC (95 %) | FID; untrained; real | PSNR | flipped | min | made by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        figures = _read(run / "summary.json", "run")
        if figures.get("status") != "completed":
            raise UserError(f"{run} is no completed run (status {figures.get('status')})")
        distances = [figures[name] for name in ("fid", "fid_untrained", "fid_floor")]
        cells = [
            f"`{_command(run)}`",
            _auc(figures),
            "; ".join(format_figure(value, ".0f") for value in distances),
            format_figure(figures["psnr"], ".1f", " dB"),
            _flipped(figures["counterfactual"]),
            f"{figures['seconds'] / 60:.1f}",
            _made_by(figures),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
    results = _read(study / "results.json" if study.is_dir() else study, "study")
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
        lines.append(f"| {' | '.join([*cells, _made_by(first)])} |")
    means = results["mean_auc_macro"]
    cells = ["mean", *format_comparison(means["with"], means["without"]), ""]
    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _labels_tables(study: Path) -> str:
    """The study's methods and, folded away, each of its runs and trials."""
    results = _read(study / "results.json" if study.is_dir() else study, "study")
    command = " ".join(
        ["fed-mediffusion study labels", *_shown(results["overrides"]), *results["options"]]
    )
    lines = [
        f"Methods at shares of labels, `{command}` (± deviation of the seeds; differences are "
        "paired over resampled lesions or patients; minutes of one core, with judging):",
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
    return [run["method"] + site, share, auc, minutes, _made_by(run)]


def _trial_cells(trial: dict[str, Any]) -> list[str]:
    site = f" at {trial['site']}" if trial["site"] else ""
    settings = f"`{' '.join(trial['trial'])}`" if trial["trial"] else "as it is"
    auc = NOT_RUN if trial["auc_pooled"] is None else format_figure(trial["auc_pooled"])
    return [trial["method"] + site, settings, auc, "yes" if trial["chosen"] else ""]


def _made_by(figures: dict[str, Any]) -> str:
    made_by = f"seed {figures['seed']}, commit {shorten(figures['commit'])}"
    return f"{made_by}, settings {figures['settings_hash'][:8]}"


def _command(run: Path) -> str:
    launched = _read(run / LAUNCH, "run")
    name = launched["config_name"]
    chosen = [] if name == "config" else [f"--config-name {name}"]
    return " ".join(["fed-mediffusion simulate", *chosen, *_shown(launched["overrides"])])


def _shown(overrides: Sequence[str]) -> list[str]:
    """Overrides as a reader would type them: no folder of this machine among them."""
    kept = [one for one in overrides if not one.startswith(LOCAL)]
    shown = ["data.root=PATH" if one.startswith("data.root=") else one for one in kept]
    return list(dict.fromkeys(shown))


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError):
        raise UserError(
            f"{path.parent} holds no finished {what} (no readable {path.name})"
        ) from None
