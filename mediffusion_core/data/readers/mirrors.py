"""Data sets as hosts and mirrors serve them: in doubled folders, or in batches side by side."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mediffusion_core.common.errors import UserError

DEPTH = 2
"""Folders below the root that are looked into."""

SPLITS = ("train", "valid", "test")
PATIENT = re.compile(r"patient\d+")

Homes = dict[tuple[str, str], Path]
"""Split, empty if the folder names none, and patient to the folder of that patient."""


def find_home(root: Path, table: str, also: str = "*") -> Path:
    """The folder of a data set's table: the root, or the only one a little below it.

    Args:
        root: resolved `data.root`.
        table: glob pattern of the table's name.
        also: glob pattern of the folders below the root that may hold it.

    Raises:
        UserError: no such folder, or several; it says where was looked.
    """
    for depth in range(DEPTH + 1):
        pattern = "/".join([*[also] * bool(depth), *["*"] * (depth - 1), table])
        homes = sorted({path.parent for path in root.glob(pattern) if path.is_file()})
        if len(homes) == 1:
            return homes[0]
        if homes:
            names = ", ".join(str(home.relative_to(root)) for home in homes)
            raise UserError(f"data.root={root}: needs one folder with {table}, found {names}")
    below = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
    raise UserError(
        f"data.root={root}: needs {table}, found none there or up to {DEPTH} folders below; "
        f"the folder holds {below}"
    )


def patient_homes(root: Path) -> Homes:
    """Where the folders of patients lie, such as `CheXpert-v1.0 batch 2 (train 1)/patient00001`."""
    found: Homes = {}
    for folder in _folders(root, DEPTH):
        split = folder.name if folder.name in SPLITS else ""
        for patient in _names(folder):
            if PATIENT.fullmatch(patient):
                found.setdefault((split, patient), folder / patient)
    return found


def looked_in(homes: Homes, root: Path) -> str:
    """The folders that hold patients, for an error."""
    folders = sorted({str(home.parent.relative_to(root)) for home in homes.values()})
    return ", ".join(folders[:10]) or f"no folder of patients up to {DEPTH} folders below"


def _folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    if depth:
        for name in _names(root):
            if not PATIENT.fullmatch(name):
                yield from _folders(root / name, depth - 1)


def _names(folder: Path) -> Sequence[str]:
    """Names of the folders in a folder, links left out."""
    with os.scandir(folder) as entries:
        return sorted(one.name for one in entries if one.is_dir(follow_symlinks=False))
