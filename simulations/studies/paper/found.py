"""The results of the finished cells: AUCs with paired differences, summaries, measurements."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.evaluation.classification import interval
from simulations.baselines.macro_auc import Bootstrap, MacroAuc, bootstrapped_macro_auc
from simulations.engine.cells import RUN
from simulations.studies.labels.comparison import paired_difference
from simulations.studies.paper.cells import PaperMeasure
from simulations.studies.run_cells import RunCell

BOOTSTRAPS = 400


@dataclass(frozen=True)
class Found:
    """The figures of the study's cells, as far as they have finished."""

    study: Path
    runs: Mapping[str, RunCell]
    """The run of each variant."""
    sites: NDArray[np.str_]
    """Site of each image of the public test set, which is the same for all runs."""
    last_site: str
    """The site that one run leaves out."""
    _aucs: dict[tuple[str, str | None], MacroAuc] = field(default_factory=dict, repr=False)

    def title(self, run: str) -> str:
        """Title of a run."""
        return self.runs[run].title

    def finished(self, runs: Iterable[str]) -> list[str]:
        """Those of some runs that have finished."""
        return [run for run in runs if self.runs[run].figures(self.study) is not None]

    def classifies(self, run: str) -> bool:
        """Whether a finished run trained its classifier."""
        return (self.runs[run].figures(self.study) or {})["auc_macro"] is not None

    def measure_cell(self, measure: str, run: str) -> PaperMeasure:
        """The cell of a measurement."""
        return PaperMeasure(self.runs[run], measure)

    def measured(self, measure: str, run: str) -> Mapping[str, Any]:
        """The figures of a measurement; none before it is made, or if the run does not allow it."""
        return self.measure_cell(measure, run).measured(self.study)

    def not_measured(self, measure: str, run: str) -> str:
        """Why the run does not allow a measurement; empty if it does."""
        return self.measure_cell(measure, run).not_measured(self.study)

    def run_folder(self, run: str) -> Path:
        """Folder of a run."""
        return self.runs[run].folder(self.study) / RUN

    def summary(self, run: str) -> Mapping[str, Any]:
        """The summary of a finished run."""
        summary: dict[str, Any] = json.loads((self.run_folder(run) / "summary.json").read_text())
        return summary

    def auc(self, run: str, site: str | None = None) -> Estimate:
        """Macro AUC of a finished run on the test patients, of all sites or of one."""
        return _estimate(self._auc(run, site), self._count(site))

    def difference(self, first: str, second: str, site: str | None = None) -> Estimate:
        """AUC of the first run less that of the second, paired over the same test patients."""
        one, other = self._auc(first, site), self._auc(second, site)
        low, high = paired_difference([one.draws], [other.draws])
        return Estimate(one.value - other.value, low, high, self._count(site))

    def _count(self, site: str | None) -> int:
        return int(self._at(site).sum())

    def _at(self, site: str | None) -> NDArray[np.bool_]:
        if site is None:
            return np.ones(len(self.sites), dtype=np.bool_)
        chosen: NDArray[np.bool_] = self.sites == site
        return chosen

    def _auc(self, run: str, site: str | None) -> MacroAuc:
        if (run, site) not in self._aucs:
            cell, chosen = self.runs[run], self._at(site)
            saved = cell.predictions(self.study)
            multi_label = bool((cell.figures(self.study) or {})["multi_label"])
            bootstrap = Bootstrap(saved["groups"][chosen], BOOTSTRAPS, cell.seed)
            self._aucs[run, site] = bootstrapped_macro_auc(
                saved["logits"][chosen], saved["targets"][chosen], multi_label, bootstrap
            )
        return self._aucs[run, site]


def _estimate(auc: MacroAuc, count: int) -> Estimate:
    low, high = interval(auc.draws)
    return Estimate(auc.value, low, high, count)


def estimate_of(figures: Mapping[str, Any]) -> Estimate:
    """An estimate of a measurement, whose missing numbers are null there."""
    numbers = {
        name: float("nan") if figures[name] is None else float(figures[name])
        for name in ("value", "low", "high")
    }
    return Estimate(**numbers, count=int(figures["count"]))
