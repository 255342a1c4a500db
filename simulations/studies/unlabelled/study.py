"""`fed-mediffusion study unlabelled`: training with and without the unlabelled images.

Both arms have the same labelled patients, sites, test set and optimizer steps per site and round.
The arm without unlabelled images leaves them out of both stages, so a site without labels has
nothing to train on.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs import compose, quoted
from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import Settings
from simulations.engine.processes import run_to_end
from simulations.results.figures import format_comparison, format_figure
from simulations.studies.without_unlabelled import without_unlabelled

ARMS = ("with", "without")


def study_unlabelled(overrides: Sequence[str], seeds: int, folder: Path) -> Path:
    """Runs both arms for each seed, except those already finished, and writes the table.

    Args:
        overrides: Of both arms.
        seeds: Number of seeds, from 0.
        folder: Folder of the runs and the table.

    Returns:
        The written `results.json`.

    Raises:
        UserError: if the settings leave no image unlabelled, or a run fails.
        KeyboardInterrupt: if a signal asked for the end; the current run has ended by then.
    """
    console = Console(soft_wrap=True)
    rows = []
    for seed in range(seeds):
        for arm in ARMS:
            arguments = [*overrides, *_arm_overrides(overrides, arm), f"seed={seed}"]
            summary = _run(arguments, folder / f"seed-{seed}_{arm}", console)
            rows.append(_row(seed, arm, summary))
            figure = format_figure(summary["auc_macro"])
            console.print(f"seed {seed}, {arm} unlabelled images: {figure}")
    means = {
        arm: _mean([row["auc_macro"] for row in rows if row["unlabelled"] == arm]) for arm in ARMS
    }
    results = {"overrides": list(overrides), "mean_auc_macro": means, "runs": rows}
    path = folder / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    console.print(_table(rows, means))
    return path


def _row(seed: int, arm: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seed": seed,
        "unlabelled": arm,
        "auc_macro": summary["auc_macro"],
        "interval": summary["auc_macro_interval"],
        "auc_pooled": summary["auc_pooled"],
        "seconds": summary["seconds"],
        "settings_hash": summary["settings_hash"],
        "commit": summary["commit"],
    }


def _arm_overrides(overrides: Sequence[str], arm: str) -> list[str]:
    fraction = compose("config", overrides).data.labelled_fraction
    if fraction in (0.0, 1.0):
        raise UserError(
            f"data.labelled_fraction={fraction} leaves nothing to compare; allowed: between 0 and 1"
        )
    return [] if arm == "with" else without_unlabelled(overrides, fraction)


def _run(arguments: Sequence[str], run: Path, console: Console) -> dict[str, Any]:
    """The summary of a run, which is started or resumed if it is not finished."""
    settings = compose("config", arguments)
    done = _summary(run, settings)
    if done is None:
        console.print(f"running {run.name} ...")
        command = [sys.executable, "-m", "simulations.cli.main", "simulate", *arguments]
        command.append(f"run.folder={quoted(run.resolve())}")
        finished = run_to_end(command)
        done = _summary(run, settings)
        if finished.returncode or done is None:
            lines = (finished.stdout + finished.stderr).strip().splitlines()
            raise UserError(f"{run} failed: {' / '.join(lines[-3:])}")
    return done


def _summary(run: Path, settings: Settings) -> dict[str, Any] | None:
    """The summary of a completed run with the same settings; None if there is none."""
    try:
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    same = summary.get("settings_hash") == settings.fingerprint()
    return summary if same and summary.get("status") == "completed" else None


def _mean(values: Sequence[float | None]) -> float | None:
    """None if a value was not measured, so that both arms' means are of the same seeds."""
    measured = [value for value in values if value is not None]
    return statistics.mean(measured) if len(measured) == len(values) else None


def _table(rows: Sequence[Mapping[str, Any]], means: Mapping[str, float | None]) -> Table:
    table = Table(title="macro AUC on the public test set", title_justify="left")
    for column in ("seed", "with unlabelled", "without", "difference"):
        table.add_column(column, justify="right")
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        cells = format_comparison(first["auc_macro"], second["auc_macro"])
        table.add_row(str(first["seed"]), *cells)
    table.add_row("mean", *format_comparison(means["with"], means["without"]))
    return table
