"""The comparison of the study's cells: means over seeds, paired intervals, a table and a chart."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mediffusion_core.evaluation.classification import interval
from mediffusion_core.run_io.run_folder import write_json
from simulations.baselines.macro_auc import Bootstrap, MacroAuc, bootstrapped_macro_auc
from simulations.results.figures import format_figure
from simulations.studies.labels.cells import LabelsCell
from simulations.studies.labels.curves import save_label_curves
from simulations.studies.labels.methods import METHODS, Trial
from simulations.studies.labels.plan import Plan

BOOTSTRAPS = 400
RESULTS, CURVES = "results.json", "curves.png"
NOT_RUN = "not run"
FEWEST_SAMPLES = 100
"""Of fewer an FID says little."""

Group = tuple[str, float]
"""A method and a labelled fraction."""
AucBySeed = Mapping[int, MacroAuc]


def write_comparison(
    plan: Plan,
    cells: Sequence[LabelsCell],
    chosen: Mapping[str, Trial],
    study: Path,
    console: Console,
) -> Path:
    """Writes `results.json` and `curves.png` from the finished cells, and prints the table.

    Differences from the plan's reference are paired: the AUCs of both methods are of the same
    resampled patients or lesions for each seed. The interval is of the mean over the seeds that
    both methods have.

    Args:
        plan: The plan of the study.
        cells: The cells of the plan; those without figures have not run.
        chosen: The chosen trial of each method.
        study: Folder of the study.
        console: Prints the table.

    Returns:
        The written `results.json`.
    """
    groups: dict[Group, list[LabelsCell]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.fraction), []).append(cell)
    aucs = {group: _auc_by_seed(members, study) for group, members in groups.items()}
    rows = [_row(group, members, aucs, plan.reference, study) for group, members in groups.items()]
    runs = [run for members in groups.values() for run in _runs(members, study)]
    results = {
        "overrides": list(plan.base),
        "options": plan.options,
        "reference": plan.reference,
        "trials": _trials(plan, chosen, study),
        "rows": rows,
        "runs": runs,
    }
    study.mkdir(parents=True, exist_ok=True)
    path = study / RESULTS
    write_json(path, results)
    save_label_curves(rows, study / CURVES)
    console.print(_table(rows, plan.reference))
    return path


def paired_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[float, float]:
    """95 % interval of a difference of macro AUCs, averaged over seeds, on the same patients.

    Args:
        first: For each seed the macro AUC of each bootstrap, (B,); nan where a class is missing.
        second: The same of the other method, with the same resampled patients.
    """
    each = [one - other for one, other in zip(first, second, strict=True)]
    return interval(torch.stack(each).mean(dim=0))


def _auc_by_seed(cells: Sequence[LabelsCell], study: Path) -> dict[int, MacroAuc]:
    """The macro AUC of each seed whose cells have all run; a mean over the cells of each site."""
    by_seed: dict[int, list[LabelsCell]] = {}
    for cell in cells:
        by_seed.setdefault(cell.seed, []).append(cell)
    found = {}
    for seed, members in by_seed.items():
        if any(cell.figures(study) is None for cell in members):
            continue
        each = [_auc(cell, study) for cell in members]
        value = statistics.mean(auc.value for auc in each)
        found[seed] = MacroAuc(value, torch.stack([auc.draws for auc in each]).mean(dim=0))
    return found


def _auc(cell: LabelsCell, study: Path) -> MacroAuc:
    saved = cell.predictions(study)
    multi_label = bool((cell.figures(study) or {})["multi_label"])
    bootstrap = Bootstrap(saved["groups"], BOOTSTRAPS, cell.seed)
    return bootstrapped_macro_auc(saved["logits"], saved["targets"], multi_label, bootstrap)


def _row(
    group: Group,
    cells: Sequence[LabelsCell],
    aucs: Mapping[Group, AucBySeed],
    reference: str,
    study: Path,
) -> dict[str, Any]:
    method, fraction = group
    own, other = aucs[group], aucs.get((reference, fraction), {})
    figures = [found for cell in cells if (found := cell.figures(study)) is not None]
    values = [auc.value for auc in own.values()]
    classifies = all(found["auc_macro"] is not None for found in figures)
    row: dict[str, Any] = {
        "method": method,
        "title": METHODS[method].title,
        "fraction": fraction,
        "seeds": sorted(own),
        "auc_macro": statistics.mean(values) if values and classifies else None,
        "auc_deviation": statistics.stdev(values) if len(values) > 1 and classifies else None,
        "fid": _mean(figures, "fid") if _draws_enough(cells) else None,
        "seconds": _mean(figures, "seconds"),
        "parameters": _mean(figures, "parameters"),
    }
    for name in ("ece", "brier"):
        row[name] = _mean([found["calibration"] for found in figures], name) if classifies else None
    both = sorted(own.keys() & other.keys())
    if both and method != reference and classifies:
        row["difference"] = statistics.mean(own[seed].value - other[seed].value for seed in both)
        row["difference_interval"] = paired_difference(
            [own[seed].draws for seed in both], [other[seed].draws for seed in both]
        )
    return row


def _draws_enough(cells: Sequence[LabelsCell]) -> bool:
    """Whether each evaluation has samples enough for an FID; a study may draw few to save time."""
    return all(cell.settings.evaluation.num_samples >= FEWEST_SAMPLES for cell in cells)


def _mean(figures: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [found[name] for found in figures if found.get(name) is not None]
    return statistics.mean(values) if values else None


def _runs(cells: Sequence[LabelsCell], study: Path) -> list[dict[str, Any]]:
    """One entry for each cell, so that every figure can be reproduced; None if it has not run."""
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


def _table(rows: Sequence[Mapping[str, Any]], reference: str) -> Table:
    table = Table(title="macro AUC on the public test set", title_justify="left")
    table.add_column("method")
    for column in ("labels", "AUC", "seeds", f"against {reference} (95 %)", "FID", "ECE", "min"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row_cells(row))
    return table


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row in the printed table."""
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
