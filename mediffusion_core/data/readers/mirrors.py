"""Data sets as hosts and mirrors serve them: in doubled folders, or in batches side by side."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.checks.finding import Finding
from mediffusion_core.data.files import UNLISTED, FolderFiles, summary

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


def find_images(
    root: Path, files: FolderFiles, names: Sequence[str], places: Sequence[Path]
) -> tuple[str, ...]:
    """Where the images of a table lie, by their names without endings.

    Args:
        root: resolved `data.root`.
        files: what it holds.
        names: N images.
        places: folders that come first where several hold an image of a name; then all others.

    Returns:
        N paths relative to the root; for an image that is not there the path in the first place.

    Raises:
        UserError: not one image is anywhere.
    """
    first = {str(place.relative_to(root)): rank for rank, place in enumerate(places)}

    def rank(path: str) -> tuple[int, str]:
        return first.get(os.path.dirname(path) or ".", len(places)), path

    there: dict[str, str] = {}
    for path in sorted(files.images, key=rank):
        there.setdefault(PurePosixPath(path).stem, path)
    paths = [there.get(PurePosixPath(name).stem) for name in names]
    if not any(paths):
        raise UserError(
            f"data.root={root}: none of the {len(names)} images is there or below, the first is "
            f"{names[0]}; the folder holds {len(files.images)} images of other names"
        )
    missing = places[0].relative_to(root)
    return tuple(path or str(missing / name) for path, name in zip(paths, names, strict=True))


def unused(files: FolderFiles, used: Collection[str], tables: Iterable[str]) -> tuple[Finding, ...]:
    """A line for each kind of file below the root that a data set does not use.

    Args:
        files: what the root holds.
        used: paths of the images, relative to the root.
        tables: paths of the tables that are read.
    """
    known = {*used, *tables}
    left = files.without(set(files.images) - known, UNLISTED).left_out
    return tuple(summary(one for one in left if one.path not in known))


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
