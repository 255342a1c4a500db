"""One cell of a sweep: a whole run within one process, kept by its settings' hash.

`python -m simulations.sweeps.cell FOLDER` runs the cell described in a folder. An interrupted run
resumes from its last checkpoint.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from client.node_configuration import own_threads
from configs.compose import compose, quoted
from mediffusion_core.reporting.formats import number
from mediffusion_core.settings import Settings
from simulations.engine.cells import DESCRIPTION, RUN, Cell, run_described, run_hash
from simulations.engine.in_process import run_in_process


@dataclass(frozen=True)
class SweepCell(Cell):
    """One combination of the settings that a sweep varies."""

    module: ClassVar[str] = "simulations.sweeps.cell"

    overrides: tuple[str, ...]
    changed: tuple[tuple[str, str], ...]
    """The varied settings with their values."""

    @cached_property
    def settings(self) -> Settings:
        """The settings of its run."""
        return compose("config", self.overrides)

    @cached_property
    def settings_hash(self) -> str:
        """Hash of the settings of its run, with the paths of the images."""
        return run_hash(self.settings)

    @property
    def title(self) -> str:
        """The varied settings."""
        return " ".join(f"{key}={value}" for key, value in self.changed)

    @property
    def threads(self) -> int:
        """As many as its sites compute with."""
        return own_threads(self.settings, {})

    def description(self) -> Mapping[str, Any]:
        """Its overrides."""
        return {"overrides": list(self.overrides)}

    def result(self, figures: Mapping[str, Any]) -> str:
        """The validation AUC."""
        return f"validation AUC {number(figures.get('auc_pooled'))}"

    def figures(self, root: Path) -> dict[str, Any] | None:
        """The summary of its run; None if it is not completed."""
        try:
            summary: dict[str, Any] = json.loads(
                (self.folder(root) / RUN / "summary.json").read_text()
            )
        except (OSError, ValueError):
            return None
        return summary if summary.get("status") == "completed" else None


def run_cell(folder: Path) -> None:
    """Runs the cell described in a folder, or its remaining rounds."""
    described = json.loads((folder / DESCRIPTION).read_text())
    run = (folder / RUN).resolve()
    run_in_process("config", [*described["overrides"], f"run.folder={quoted(run)}"])


if __name__ == "__main__":
    run_described(run_cell)
