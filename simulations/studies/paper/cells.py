"""The cells of the study: runs, and measurements of a finished run.

`python -m simulations.studies.paper.cells FOLDER` makes the measurement described in a folder. Runs
are those of the study of labels.
"""

import json
from collections.abc import Mapping
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
from simulations.engine.cells import DESCRIPTION, FIGURES, RUN, Cell, run_described
from simulations.engine.simulate import LAUNCH
from simulations.studies.labels.cells import LabelsCell
from simulations.studies.paper.measures import MEASURES, SIZES
from simulations.studies.paper.variants import Variant

NOT_MEASURED = "not_measured"
"""Figure of a measurement that the run does not allow: why."""
COMMIT = "commit"
"""Figure of a measurement: the commit that made it."""


@dataclass(frozen=True, kw_only=True)
class RunCell(LabelsCell):
    """A run of the study."""

    variant_title: str

    @property
    def title(self) -> str:
        """The title of its variant."""
        return self.variant_title


@dataclass(frozen=True)
class MeasureCell(Cell):
    """A measurement of a run."""

    module: ClassVar[str] = "simulations.studies.paper.cells"

    run: RunCell
    measure: str

    @cached_property
    def settings_hash(self) -> str:
        """Hash of the run, the measurement and its sizes."""
        return fingerprint(run=self.run.settings_hash, measure=self.measure, sizes=SIZES)[:16]

    @property
    def title(self) -> str:
        """The measurement and its run."""
        return f"{self.measure} of {self.run.title}"

    def forget_reason(self, study: Path) -> None:
        """Lets a measurement that was not possible be tried again: a package may be there now."""
        if NOT_MEASURED in (self.figures(study) or {}):
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


def run_cell_of(variant: Variant, base: tuple[str, ...]) -> RunCell:
    """The run of a variant, with the base's overrides."""
    overrides = (*base, *variant.overrides)
    settings = compose("config", overrides)
    return RunCell(
        method=variant.name,
        fraction=settings.data.labelled_fraction,
        seed=settings.seed,
        site=None,
        overrides=overrides,
        baseline=None,
        variant_title=variant.title,
    )


def make_measurement(folder: Path) -> None:
    """Makes the measurement described in a folder and writes its figures there."""
    torch.set_num_threads(1)
    described = json.loads((folder / DESCRIPTION).read_text())
    run = (folder / described["run"]).resolve()
    if not (run / LAUNCH).exists():  # it says where the images lie
        write_json(run / LAUNCH, {"config_name": "config", "overrides": described["overrides"]})
    try:
        figures = MEASURES[described["measure"]](run, folder)
    except UserError as error:
        figures = {NOT_MEASURED: str(error)}
    write_json(folder / FIGURES, {**figures, COMMIT: current_commit()})


if __name__ == "__main__":
    run_described(make_measurement)
