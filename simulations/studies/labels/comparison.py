"""What the study's cells say together: means over seeds, paired intervals, a table and curves."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mediffusion_core.evaluation.classification import (
    bootstrap_auc,
    class_scores,
    exact_auc,
    interval,
    macro,
    macro_draws,
)
from mediffusion_core.reporting.charts import spread
from mediffusion_core.reporting.style import (
    BLUE,
    FAINT,
    MUTED,
    OCHRE,
    TERRACOTTA,
    house_type,
    new_figure,
    save_figure,
)
from mediffusion_core.run_io.run_folder import write_json
from simulations.results.figures import format_figure
from simulations.studies.labels.cells import Cell
from simulations.studies.labels.methods import JOINT, METHODS, Trial
from simulations.studies.labels.plan import Plan

BOOTSTRAPS = 400
RESULTS, CURVES = "results.json", "curves.png"
NOT_RUN = "not run"

Group = tuple[str, float]
"""A method and a share of labels."""
End = tuple[float, float, str, str]
"""Where a method's line ends, its name and its colour."""


def write_comparison(
    plan: Plan, cells: Sequence[Cell], chosen: Mapping[str, Trial], study: Path, console: Console
) -> Path:
    """Writes `results.json` and `curves.png` from the cells that are there, and shows the table.

    Differences to the federated joint network are paired: both methods' areas under the curve are
    those of the same resampled patients or lesions, seed by seed, and the interval is that of the
    mean over the seeds that both have.

    Returns:
        The written `results.json`.
    """
    groups: dict[Group, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.fraction), []).append(cell)
    draws = {group: _draws(own, study) for group, own in groups.items()}
    rows = [_row(group, own, draws, study) for group, own in groups.items()]
    runs = [run for own in groups.values() for run in _runs(own, study)]
    results = {
        "overrides": list(plan.base),
        "options": plan.options,
        "trials": _trials(plan, chosen, study),
        "rows": rows,
        "runs": runs,
    }
    study.mkdir(parents=True, exist_ok=True)
    path = study / RESULTS
    write_json(path, results)
    save_label_curves(rows, study / CURVES)
    console.print(_table(rows))
    return path


def paired_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[float, float]:
    """95 % interval of the mean over seeds of a difference, from draws of the same patients.

    Args:
        first: for each seed the macro area of each bootstrap, (B,); nan where a class was left out.
        second: the same of the other method, drawn alike.
    """
    each = [one - other for one, other in zip(first, second, strict=True)]
    return interval(torch.stack(each).mean(dim=0))


def _draws(cells: Sequence[Cell], study: Path) -> dict[int, tuple[float, Tensor]]:
    """For each seed whose cells are all there: macro area and its bootstraps, means over sites."""
    by_seed: dict[int, list[Cell]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(cell)
    found = {}
    for seed, own in by_seed.items():
        if any(cell.figures(study) is None for cell in own):
            continue
        each = [_areas(cell, study) for cell in own]
        value = statistics.mean(area for area, _ in each)
        found[seed] = (value, torch.stack([drawn for _, drawn in each]).mean(dim=0))
    return found


def _areas(cell: Cell, study: Path) -> tuple[float, Tensor]:
    kept, multi_label = cell.predictions(study), bool((cell.figures(study) or {})["multi_label"])
    scores = class_scores(kept["logits"], multi_label)
    per_class = exact_auc(scores, kept["targets"])
    drawn = bootstrap_auc(scores, kept["targets"], kept["groups"], BOOTSTRAPS, cell.seed)
    return macro(per_class), macro_draws(per_class, drawn)


def _row(
    group: Group,
    cells: Sequence[Cell],
    draws: Mapping[Group, Mapping[int, tuple[float, Tensor]]],
    study: Path,
) -> dict[str, Any]:
    method, fraction = group
    own, joint = draws[group], draws.get((JOINT.name, fraction), {})
    figures = [found for cell in cells if (found := cell.figures(study)) is not None]
    aucs = [value for value, _ in own.values()]
    classifies = all(found["auc_macro"] is not None for found in figures)
    row: dict[str, Any] = {
        "method": method,
        "title": METHODS[method].title,
        "fraction": fraction,
        "seeds": sorted(own),
        "auc_macro": statistics.mean(aucs) if aucs and classifies else None,
        "auc_deviation": statistics.stdev(aucs) if len(aucs) > 1 and classifies else None,
        "fid": _mean(figures, "fid"),
        "seconds": _mean(figures, "seconds"),
        "parameters": _mean(figures, "parameters"),
    }
    for name in ("ece", "brier"):
        row[name] = _mean([found["calibration"] for found in figures], name) if classifies else None
    both = sorted(own.keys() & joint.keys())
    if both and method != JOINT.name and classifies:
        row["difference"] = statistics.mean(own[seed][0] - joint[seed][0] for seed in both)
        row["difference_interval"] = paired_difference(
            [own[seed][1] for seed in both], [joint[seed][1] for seed in both]
        )
    return row


def _mean(figures: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [found[name] for found in figures if found.get(name) is not None]
    return statistics.mean(values) if values else None


def _runs(cells: Sequence[Cell], study: Path) -> list[dict[str, Any]]:
    """One line a cell, so that each figure can be made again; None where it has not been run."""
    lines = []
    for cell in cells:
        found = cell.figures(study) or {}
        names = ("auc_macro", "auc_macro_interval", "auc_pooled", "fid", "psnr", "seconds")
        lines.append(
            {
                "method": cell.method,
                "fraction": cell.fraction,
                "seed": cell.seed,
                "site": cell.site,
                "settings_hash": cell.settings_hash,
                **{name: found.get(name) for name in (*names, "selected_round", "commit")},
            }
        )
    return lines


def _trials(plan: Plan, chosen: Mapping[str, Trial], study: Path) -> list[dict[str, Any]]:
    lines = []
    for name, number, cell in plan.trials():
        trial = METHODS[name].trials[number]
        figures = cell.figures(study) or {}
        lines.append(
            {
                "method": name,
                "trial": list(trial),
                "site": cell.site,
                "auc_pooled": figures.get("auc_pooled"),
                "chosen": chosen[name] == trial,
            }
        )
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="macro AUC on the public test set", title_justify="left")
    table.add_column("method")
    for column in ("labels", "AUC", "seeds", "against joint (95 %)", "FID", "ECE", "min"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row_cells(row))
    return table


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """A row's figures as a reader sees them."""
    seconds = row["seconds"]
    if not row["seeds"]:
        return [row["title"], f"{row['fraction']:.0%}", NOT_RUN, "", "", "", "", ""]
    auc = format_figure(row["auc_macro"])
    if row["auc_deviation"] is not None:
        auc += f" ± {row['auc_deviation']:.3f}"
    difference = ""
    if "difference" in row:
        low, high = row["difference_interval"]
        difference = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    return [
        row["title"],
        f"{row['fraction']:.0%}",
        auc if row["auc_macro"] is not None else "-",
        str(len(row["seeds"])),
        difference,
        "-" if row["fid"] is None else f"{row['fid']:.0f}",
        "-" if row["ece"] is None else f"{row['ece']:.3f}",
        f"{seconds / 60:.1f}",
    ]


def save_label_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws AUC against the share of labels; a method at one share only is a point.

    Nothing is written where nothing was measured.
    """
    series: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in rows:
        if row["auc_macro"] is not None:
            series.setdefault(row["title"], {})[row["fraction"]] = row
    if not series:
        return
    colours = iter([BLUE, TERRACOTTA, OCHRE, MUTED])
    alone = [title for title, points in series.items() if len(points) == 1]
    ends: list[End] = []
    with house_type():
        figure = new_figure(6.4, 4.0, layout="constrained")
        axes = figure.subplots()
        for title, points in series.items():
            shares = sorted(points)
            values = [points[share]["auc_macro"] for share in shares]
            errors = [points[share]["auc_deviation"] or 0.0 for share in shares]
            is_line = title not in alone
            coloured = is_line or len(alone) == len(series)
            colour = next(colours, FAINT) if coloured else FAINT
            # Points of one share stand beside each other, so that no bar hides another.
            aside = 1.0 if is_line else 1.05 ** -alone.index(title)
            places = [share * aside for share in shares]
            style = "o-" if is_line else "s"
            axes.errorbar(places, values, errors, fmt=style, color=colour, ms=4, lw=1.6, capsize=2)
            ends.append((shares[-1], values[-1], title, colour if coloured else MUTED))
        axes.set_xscale("log")
        ticks = sorted({share for points in series.values() for share in points})
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("labelled share of the training images")
        axes.set_title("Macro AUC on held-out lesions or patients, mean ± deviation of seeds")
        axes.grid(axis="y")
        axes.margins(x=0.35, y=0.1)
        if len(ticks) == 1:
            axes.set_xlim(ticks[0] / 1.7, ticks[0] * 1.7)
        name_ends(axes, ends)
        save_figure(figure, path)


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Writes each method's name beside its last point, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    for share in {end[0] for end in ends}:
        column = sorted((end for end in ends if end[0] == share), key=lambda end: end[1])
        places = spread([(value - low) / (high - low) for _, value, _, _ in column], 0.045)
        for place, (_, _, title, colour) in zip(places, column, strict=True):
            axes.annotate(
                title,
                (share, low + place * (high - low)),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                size=7.5,
            )
