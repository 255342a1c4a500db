"""Cells of studies of whole runs: a run with a title, and a measurement of a finished run."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.run_io.provenance import current_commit
from mediffusion_core.run_io.run_folder import write_json
from simulations.engine.cells import DESCRIPTION, FIGURES, RUN, Cell
from simulations.engine.simulate import LAUNCH
from simulations.studies.labels.cells import LabelsCell

NOT_MEASURED = "not_measured"
"""Figure of a measurement that the run does not allow: why."""
COMMIT, SECONDS = "commit", "seconds"
"""Figures of a measurement: the commit that made it, and how long it took."""

Measure = Callable[[Path, Path], dict[str, Any]]
"""Takes the folders of a run and of the measurement, and returns figures as JSON values."""


@dataclass(frozen=True, kw_only=True)
class RunCell(LabelsCell):
    """A run of the study; those of the study of labels run it."""

    variant_title: str

    @property
    def title(self) -> str:
        """The title of its variant."""
        return self.variant_title


def run_cell_of(name: str, title: str, overrides: tuple[str, ...]) -> RunCell:
    """The run of some overrides, with its name and title among those of the study."""
    settings = compose("config", overrides)
    return RunCell(
        method=name,
        fraction=settings.data.labelled_fraction,
        seed=settings.seed,
        site=None,
        overrides=overrides,
        baseline=None,
        variant_title=title,
    )


@dataclass(frozen=True)
class MeasureCell(Cell):
    """A measurement of a run. Its module calls `make_measurement`."""

    sizes: ClassVar[tuple[Any, ...]] = ()
    """The constants that its figures depend on."""

    run: RunCell
    measure: str

    @cached_property
    def settings_hash(self) -> str:
        """Hash of the run, the measurement and its sizes."""
        return fingerprint(run=self.run.settings_hash, measure=self.measure, sizes=self.sizes)[:16]

    @property
    def title(self) -> str:
        """The measurement and its run."""
        return f"{self.measure} of {self.run.title}"

    def measured(self, study: Path) -> Mapping[str, Any]:
        """Its figures; none before it is made, or if the run does not allow it."""
        figures = self.figures(study) or {}
        if NOT_MEASURED in figures:
            return {}
        return {name: one for name, one in figures.items() if name not in (COMMIT, SECONDS)}

    def not_measured(self, study: Path) -> str:
        """Why the run does not allow it; empty if it does."""
        return str((self.figures(study) or {}).get(NOT_MEASURED, ""))

    def forget_reason(self, study: Path) -> None:
        """Lets a measurement that was not possible be tried again: a package may be there now."""
        if self.not_measured(study):
            (self.folder(study) / FIGURES).unlink()

    def description(self) -> Mapping[str, Any]:
        """As `make_measurement` reads it."""
        return {
            "measure": self.measure,
            "run": f"../{self.run.settings_hash}/{RUN}",
            "overrides": list(self.run.overrides),
        }

    def result(self, figures: Mapping[str, Any]) -> str:
        """That it is done, or why it is not."""
        return str(figures.get(NOT_MEASURED, "done"))


def make_measurement(measures: Mapping[str, Measure], folder: Path) -> None:
    """Makes the measurement described in a folder and writes its figures there."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    described = json.loads((folder / DESCRIPTION).read_text())
    run = (folder / described["run"]).resolve()
    if not (run / LAUNCH).exists():  # it says where the images lie
        write_json(run / LAUNCH, {"config_name": "config", "overrides": described["overrides"]})
    try:
        figures = measures[described["measure"]](run, folder)
    except UserError as error:
        figures = {NOT_MEASURED: str(error)}
    made = {COMMIT: current_commit(), SECONDS: time.monotonic() - begun}
    write_json(folder / FIGURES, {**figures, **made})
