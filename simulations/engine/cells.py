"""Cells: the runs of one command, each kept in a folder that its settings' hash names."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import Settings

DESCRIPTION, FIGURES = "cell.json", "figures.json"
RUN = "run"
"""Folder of a cell's run in the cell's folder."""


class Cell(ABC):
    """One run among those of a command."""

    module: ClassVar[str]
    """`python -m MODULE FOLDER` runs the cell that is described in a folder."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name among the cells of the command."""

    @property
    @abstractmethod
    def settings_hash(self) -> str:
        """Hash of all settings that its figures depend on, with the paths of the images."""

    @property
    def threads(self) -> int:
        """Number of threads that it computes with."""
        return 1

    @abstractmethod
    def description(self) -> Mapping[str, Any]:
        """The content of `cell.json`, which its process reads."""

    @abstractmethod
    def result(self, figures: Mapping[str, Any]) -> str:
        """Its main figure in words, for the line that is printed at its end."""

    def folder(self, root: Path) -> Path:
        """Its folder in the folder of the command."""
        return root / "cells" / self.settings_hash

    def figures(self, root: Path) -> dict[str, Any] | None:
        """Its figures; None if it has not finished."""
        try:
            figures: dict[str, Any] = json.loads((self.folder(root) / FIGURES).read_text())
        except (OSError, ValueError):
            return None
        return figures

    def describe(self, root: Path) -> None:
        """Writes the description into its folder."""
        folder = self.folder(root)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DESCRIPTION, self.description())


def unfinished(cells: Iterable[Cell], root: Path) -> set[str]:
    """Hashes of the cells that have not finished; a cell that is given twice counts once."""
    return {cell.settings_hash for cell in cells if cell.figures(root) is None}


def run_described(run: Callable[[Path], None]) -> None:
    """Runs the cell in the folder that the command line gives; a `UserError` is one line."""
    try:
        run(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))


def run_hash(settings: Settings) -> str:
    """Hash of all settings that the figures of a run depend on, with the paths of the images."""
    return fingerprint(**images_of(settings), settings=settings.fingerprint())[:16]


def images_of(settings: Settings) -> dict[str, Any]:
    """The images that the settings name, for a cell's hash.

    The hash of a run has no paths; here two folders of images must give two cells.
    """
    paths = [settings.data.root, settings.data.table]
    return {
        "images": [str(path.resolve()) for path in paths if path is not None],
        "columns": settings.data.columns.model_dump(mode="json"),
    }
