"""The measurements of the study, each of a finished run.

`python -m simulations.studies.paper.cells FOLDER` makes the measurement described in a folder.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from simulations.engine.cells import run_described
from simulations.studies.paper.measures import MEASURES, SIZES
from simulations.studies.run_cells import MeasureCell, make_measurement


@dataclass(frozen=True)
class PaperMeasure(MeasureCell):
    """A measurement of a run, for a question of the paper."""

    module: ClassVar[str] = "simulations.studies.paper.cells"
    sizes: ClassVar[tuple[Any, ...]] = SIZES


if __name__ == "__main__":
    run_described(partial(make_measurement, MEASURES))
