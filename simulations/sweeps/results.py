"""The results of a sweep: `sweep.csv` with one line a cell, `sweep.json`, and the printed table."""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mediffusion_core.common.files import replacing
from mediffusion_core.reporting.formats import duration, measured, number
from mediffusion_core.run_io.run_folder import write_json
from simulations.engine.cells import RUN
from simulations.sweeps.candidate import Candidate
from simulations.sweeps.cell import SweepCell
from simulations.sweeps.objective import POOLED, has_objective, objective_of

CSV, JSON = "sweep.csv", "sweep.json"
TEST_FIGURES = ("auc_macro", "fid", "psnr")
"""Figures of the public test set that stand beside the objective."""
CAPTION = (
    "± standard error over seeds. Choose by the validation figure: test figures are for the chosen "
    "settings alone."
)
PRINTED = 20
"""Largest number of candidates in the printed table."""
LONG = 12
"""Characters of the longest number that the table shows whole."""


class Results:
    """The cells of a sweep as rows, and its candidates with means over their seeds."""

    def __init__(
        self,
        root: Path,
        candidates: Sequence[Candidate],
        failures: Mapping[str, str],
        objective: str,
    ) -> None:
        """Takes the sweep's folder, its candidates, the lines of failed cells, and the figure."""
        self._root, self._failures, self._objective = root, failures, objective
        self._keys = list(candidates[0].chosen) if candidates else []
        rows = [(one, [self._row(one, cell) for cell in one.cells]) for one in candidates]
        self.rows = [row for _, of_candidate in rows for row in of_candidate]
        self.ranked = sorted((self._summed(*one) for one in rows), key=_rank)

    def write(self, description: Mapping[str, Any]) -> Path:
        """Writes both files; returns the table's path."""
        whole = {**description, "objective": self._objective, "cells": self.rows}
        write_json(self._root / JSON, {**whole, "candidates": self.ranked})
        path = self._root / CSV
        lines = [_flat(row) for row in self.rows]
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(lines[0]) if lines else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        return path

    def print(self, console: Console) -> None:
        """Prints the candidates, the best first."""
        title = f"{self._objective} on validation patients, of the selected round"
        table = Table(title=title, title_justify="left")
        for name in (*_short(self._keys), "seeds", "validation", "test AUC", "time"):
            table.add_column(escape(name), justify="right")
        for one in self.ranked[:PRINTED]:
            values = (escape(_rounded(one["changed"][key])) for key in self._keys)
            error = one["standard_error"]
            shown = number(one["validation"]) + ("" if error is None else f" ± {number(error)}")
            counted = f"{one['finished']} of {one['seeds']}"
            test, time = number(one["test_auc_macro"]), duration(one["seconds"])
            table.add_row(*values, counted, shown, test, time)
        table.caption, table.caption_justify = CAPTION, "left"
        console.print(table)
        if len(self.ranked) > PRINTED:
            console.print(f"{len(self.ranked) - PRINTED} more in {self._root / CSV}")

    def _row(self, candidate: Candidate, cell: SweepCell) -> dict[str, Any]:
        """A cell's identity and figures; the figures are null as long as it has not finished."""
        summary = cell.figures(self._root)
        found = summary or {}
        failed = cell.settings_hash in self._failures
        status = "finished" if summary else "failed" if failed else "not finished"
        validates = has_objective(cell.settings)
        objectives = dict.fromkeys((POOLED, self._objective))
        return {
            **({} if candidate.trial is None else {"trial": candidate.trial}),
            "changed": dict(candidate.chosen),
            "seed": cell.settings.seed,
            "status": status,
            "settings_hash": cell.settings.fingerprint(),
            "commit": found.get("commit"),
            "selected_round": found.get("selected_round"),
            "validation": {
                name: objective_of(found, name) if validates else None for name in objectives
            },
            "test": {name: measured(found.get(name)) for name in TEST_FIGURES},
            "seconds": found.get("seconds"),
            "folder": str((cell.folder(self._root) / RUN).relative_to(self._root)),
            "overrides": list(cell.overrides),
            "failure": self._failures.get(cell.settings_hash),
        }

    def _summed(self, candidate: Candidate, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over a candidate's seeds that have finished."""
        finished = [row for row in rows if row["status"] == "finished"]
        values = _known(row["validation"][self._objective] for row in finished)
        several = len(values) > 1
        error = statistics.stdev(values) / math.sqrt(len(values)) if several else None
        return {
            **({} if candidate.trial is None else {"trial": candidate.trial}),
            "changed": dict(candidate.chosen),
            "seeds": len(rows),
            "finished": len(finished),
            "validation": _mean(values),
            "standard_error": error,
            "test_auc_macro": _mean(_known(row["test"]["auc_macro"] for row in finished)),
            "seconds": _mean(_known(row["seconds"] for row in finished)),
        }


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table: the figures with their kind in the name, without texts of many words."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "changed":
            flat |= value
        elif name in ("validation", "test"):
            flat |= {f"{name}_{figure}": one for figure, one in value.items()}
        elif name not in ("overrides", "failure"):
            flat[name] = value
    return flat


def _rank(candidate: Mapping[str, Any]) -> float:
    value = candidate["validation"]
    return math.inf if value is None else -float(value)


def _known(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _rounded(value: str) -> str:
    """A value for the table: a long number, as a search proposes it, has four digits there."""
    if len(value) <= LONG or value.isdigit():
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted names, as many as tell them apart."""
    parts = [key.lstrip("+").split(".") for key in keys]
    for count in range(1, 1 + max(map(len, parts), default=0)):
        shortened = [".".join(one[-count:]) for one in parts]
        if len(set(shortened)) == len(keys):
            return shortened
    return list(keys)
