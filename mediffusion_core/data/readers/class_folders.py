"""Labels and splits of images from the names of their folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.checks.finding import Finding
from mediffusion_core.data.files import LINK, FolderFiles, summary
from mediffusion_core.data.readers.class_names import spelling_findings, united
from mediffusion_core.data.readers.label_cells import chosen_classes, refuse_unknown
from mediffusion_core.data.readers.labelled_table import LabelledTable
from mediffusion_core.data.readers.split_names import (
    ALLOWED,
    refuse_half_a_split,
    split_of,
)
from mediffusion_core.data.store.images import SUFFIXES
from mediffusion_core.settings import DataSettings

STRAY = "in no class folder"


def read_class_folders(
    settings: DataSettings, root: Path, files: FolderFiles
) -> tuple[LabelledTable, FolderFiles]:
    """Labels and splits from the names of the folders that images are in, as a table.

    The layouts are `CLASS/**`, `SPLIT/CLASS/**` and `CLASS/SPLIT/**`; folders that hold nothing but
    one other folder may stand above, as mirrors double them.

    Args:
        settings: `classes` and `multi_label`.
        root: resolved folder.
        files: what the folder holds.

    Returns:
        The table, and the files without the images outside all class folders.

    Raises:
        UserError: no image in a class folder; several findings an image; a class that is not among
            `data.classes`; a folder of the classes that is a link; folders of splits beside others,
            or that are called nearly like splits.
    """
    where = f"data.root={root}"
    if settings.multi_label:
        raise UserError("data.multi_label=true needs data.table, a folder gives one class")
    for one in files.left_out:
        if one.reason == LINK:
            raise UserError(f"{where}: folder {one.path} is a link, which is not followed")
    classes = settings.classes or ()
    above = _folders_above([path.split("/")[:-1] for path in files.images], classes)
    splits_at = _level_of_splits(files.images, above, classes, where)
    depth = above + 1 + (splits_at is not None)
    strays = [path for path in files.images if path.count("/") < depth]
    files = files.without(strays, STRAY)
    if not files.images:
        raise UserError(
            f"{where}: no image found, allowed are {', '.join(SUFFIXES)} in one folder for each "
            f"class, or data.table{_left_out(files)}"
        )
    class_at = above + 1 if splits_at == above else above
    parts = [path.split("/") for path in files.images]
    if splits_at is None and not classes:
        _refuse_shared_folders([part[class_at:-1] for part in parts], where)
    table = _table(settings, root, files, [part[class_at] for part in parts])
    if splits_at is None:
        return table, files
    splits = tuple(split_of(part[splits_at]) or "" for part in parts)
    return replace(table, splits=splits), files


def _folders_above(folders: Sequence[Sequence[str]], classes: Sequence[str]) -> int:
    """How many folders, one in the other, stand above those of classes or splits."""
    level = 0
    while True:
        inside = [parts for parts in folders if len(parts) > level]
        tops = {parts[level] for parts in inside}
        deeper = {parts[level + 1] for parts in inside if len(parts) > level + 1}
        only = next(iter(tops), "")
        holds_images = any(len(parts) == level + 1 for parts in inside)
        if len(tops) != 1 or len(deeper) < 1 or holds_images or split_of(only) or only in classes:
            return level
        level += 1


def _level_of_splits(
    images: Sequence[str], above: int, classes: Sequence[str], where: str
) -> int | None:
    """At which depth the folders of splits stand; None where there are none."""
    parts = [path.split("/")[:-1] for path in images]
    tops = {part[above] for part in parts if len(part) > above}
    if _all_splits(tops - set(classes), classes, where):
        return above
    inner = {part[above + 1] for part in parts if len(part) > above + 1}
    if any(split_of(name) for name in inner - set(classes)):
        outside = [path for path, part in zip(images, parts, strict=True) if len(part) == above + 1]
        if outside:
            raise UserError(
                f"{where}: folder {min(filter(split_of, inner))} of a class is a split, "
                f"{outside[0]} lies in none"
            )
        if _all_splits(inner, classes, where):
            return above + 1
    return None


def _all_splits(names: set[str], classes: Sequence[str], where: str) -> bool:
    """Whether folders side by side are splits, all of them or none."""
    splits = {name for name in names if split_of(name)}
    if splits and splits != names:
        raise UserError(
            f"{where}: folder {min(splits)} is a split, {min(names - splits)} is not; allowed are "
            "folders of splits or folders of classes"
        )
    for name in sorted(names - splits):
        refuse_half_a_split(name, where)
    return bool(splits)


def _refuse_shared_folders(folders: Sequence[Sequence[str]], where: str) -> None:
    """Refuses folders that hold the same folders each: those below are more likely the classes.

    Args:
        folders: of each image the folders from the one that would be its class.
        where: the root, for the error.

    Raises:
        UserError: naming both.
    """
    below: dict[str, set[str]] = {}
    for top, *inner in folders:
        below.setdefault(top, set()).update(inner[:1])
    shared = set.intersection(*below.values())
    if len(below) > 1 and len(shared) > 1:
        raise UserError(
            f"{where}: the folders {', '.join(sorted(below)[:5])} hold the same folders each, "
            f"{', '.join(sorted(shared)[:5])}; allowed are folders of classes, and above them "
            f"folders of splits: {ALLOWED}. Where the upper ones are the classes, list them in "
            "data.classes"
        )


def _left_out(files: FolderFiles) -> str:
    """The files left out, for the end of an error message: the user may mean one of them."""
    return "".join(f"; {note.text}" for note in summary(files.left_out))


def _table(
    settings: DataSettings, root: Path, files: FolderFiles, folders: Sequence[str]
) -> LabelledTable:
    where = f"data.root={root}"
    meant = united(folders, settings.classes)
    given = [meant[folder] for folder in folders]
    try:
        classes = chosen_classes(settings, sorted(set(given)), root)
    except UserError as error:
        raise UserError(f"{error}{_left_out(files)}") from None
    for name in dict.fromkeys(given):
        refuse_unknown(classes, name, where)
    labels = np.array(given)[:, None] == np.array(classes)  # (N, C)
    notes: tuple[Finding, ...] = tuple(spelling_findings("folders", meant))
    return LabelledTable(
        files.images, classes, False, labels.astype(np.float32), None, None, None, b"", notes=notes
    )
