"""A user's JPEG, PNG, TIFF and WebP files, with a table of labels or a folder for each class."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.checks.check_result import CheckResult
from mediffusion_core.data.dataset import Source, UnitNames
from mediffusion_core.data.files import (
    UNLISTED,
    FolderFiles,
    is_harmless,
    is_printable,
    list_folder,
    same_name,
    shown,
    summary,
)
from mediffusion_core.data.masks import find_derived
from mediffusion_core.data.readers.class_folders import read_class_folders
from mediffusion_core.data.readers.labelled_table import (
    LabelledTable,
    read_labelled_table,
    table_path,
)
from mediffusion_core.data.readers.tables import data_root, file_stamp
from mediffusion_core.data.store.images import SUFFIXES, load_file
from mediffusion_core.settings import DataSettings

UNPRINTABLE = "names with signs that can't be printed"


def read(settings: DataSettings, seed: int) -> Source:
    """Images below `data.root`, grouped by patient where the table names patients.

    With `data.table`, the images that it lists. Without, `CLASS/**`, `SPLIT/CLASS/**` or
    `CLASS/SPLIT/**` (see `read_class_folders`). Every other file below the root is counted in a
    note: masks, hidden files, files of other kinds, links to folders.

    Raises:
        UserError: missing folder or table; no image found; what `read_labelled_table` and
            `read_class_folders` refuse.
    """
    root = data_root(settings)
    if not root.is_dir():
        raise UserError(f"data.root={root}: not a folder")
    files = list_folder(root, classes=settings.classes or ())
    unprintable = [path for path in files.images if not is_printable(path)]
    files = files.without(unprintable, UNPRINTABLE)
    if settings.table is None:
        table, files = read_class_folders(settings, root, files)
    else:
        table, files = _by_table(settings, root, files)
    notes = [*table.notes, *_unread_folders(files), *summary(files.left_out)]
    notes += _derived(files.images)
    if table.patients is None:
        text = "without data.columns.patient each image counts as a patient"
        notes.append(CheckResult("warning", text))
    stamps = [file_stamp(root, name) for name in table.names]
    return Source(
        name="folder",
        classes=table.classes,
        multi_label=table.multi_label,
        image_ids=table.names,
        labels=table.labels,
        groups=table.names if table.patients is None else table.patients,
        names=UnitNames("image" if table.patients is None else "patient"),
        centres=table.sites,
        load=partial(load_file, root, table.names, settings.window),
        fingerprint=fingerprint(
            reader="folder",
            root=str(root),
            files=list(zip(table.names, stamps, strict=True)),
            table=table.digest,
            columns=settings.columns.model_dump(exclude={"sex", "age"}),
            classes=settings.classes,
            multi_label=settings.multi_label,
            separator=settings.separator,
            window=settings.window,
        ),
        moves=table.moves,
        splits=table.splits,
        notes=tuple(notes),
        attributes=table.attributes,
    )


def _by_table(
    settings: DataSettings, root: Path, files: FolderFiles
) -> tuple[LabelledTable, FolderFiles]:
    """The table, and the files without those that it lists and with those it does not."""
    table = _with_names_on_disk(read_labelled_table(settings, root), files)
    if not any(file_stamp(root, name) for name in table.names):
        raise UserError(_names_no_file(settings, root, files, table.names[0]))
    own = table_path(settings, root)
    left_out = tuple(
        one for one in files.left_out if one.path not in set(table.names) and root / one.path != own
    )
    unlisted = set(files.images) - set(table.names)
    return table, replace(files, left_out=left_out).without(unlisted, UNLISTED)


def _with_names_on_disk(table: LabelledTable, files: FolderFiles) -> LabelledTable:
    """The table with the names of files whose accents it writes otherwise, as macOS does.

    Raises:
        UserError: an image that it lists in both ways.
    """
    there = {*files.images, *(one.path for one in files.left_out)}
    spelt = {same_name(path): path for path in there}
    names = tuple(
        name if name in there else spelt.get(same_name(name), name) for name in table.names
    )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"data.table lists image {twice} twice, with its accents in two forms")
    return replace(table, names=names)


def _names_no_file(settings: DataSettings, root: Path, files: FolderFiles, first: str) -> str:
    text = (
        f"{table_path(settings, root)}: column {settings.columns.image!r} names no file below "
        f"data.root={root}, the first is {first!r}"
    )
    name = PurePosixPath(first)
    stems = {name.stem.casefold(), name.name.casefold()}
    alike = [path for path in files.images if PurePosixPath(path).stem.casefold() in stems]
    if alike:
        return f"{text}; there is {alike[0]!r} (a path is relative to data.root, with its ending)"
    if name.suffix.lower() in SUFFIXES:
        return f"{text}; the folder has {len(files.images)} images of other names"
    return f"{text} (paths need their ending)"


def _derived(images: Sequence[str]) -> list[CheckResult]:
    """A warning for pictures that are read, and may be masks or drawings of others."""
    return [
        CheckResult(
            "warning",
            f"{len(paths)} images are called as others with {added!r} added, the first is "
            f"{shown(paths[0])}; masks and drawings must not be among the images",
        )
        for added, paths in find_derived(images).items()
    ]


def _unread_folders(files: FolderFiles) -> Sequence[CheckResult]:
    """A warning for each folder below the root of whose files none is read."""

    def tops(paths: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for path in paths:
            if "/" in path:
                top = path.split("/")[0]
                found[top] = found.get(top, 0) + 1
        return found

    read = tops(files.images)
    lost = [one for one in files.left_out if not is_harmless(one)]
    return [
        CheckResult("warning", f"folder {shown(top)}: none of its {count} files is read")
        for top, count in tops([one.path for one in lost]).items()
        if top not in read
    ]
