"""Anybody's JPEG and PNG files: with a table of labels, or in one folder for each class."""

import logging
import os
from functools import partial
from pathlib import Path

import numpy as np

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.dataset import Source
from mediffusion_core.data.readers.labelled_table import (
    SPLIT_NAMES,
    LabelledTable,
    chosen_classes,
    read_labelled_table,
    refuse_unknown,
    table_path,
)
from mediffusion_core.data.readers.tables import data_root, file_stamp, image_path
from mediffusion_core.data.store.images import SUFFIXES, load_file
from mediffusion_core.settings import DataSettings

FOREIGN = "__MACOSX"
"""What archives made on a Mac hold beside the files; it repeats every file's name."""

logger = logging.getLogger(__name__)


def read(settings: DataSettings, seed: int) -> Source:
    """Images below `data.root`, grouped by patient where the table names patients.

    With `data.table`, the images that it lists. Without, `CLASS/**` or `SPLIT/CLASS/**`, where
    SPLIT is one of `SPLIT_NAMES` and gives the official splits; hidden files are left out.

    Raises:
        UserError: missing folder or table; no image found; what `read_labelled_table` refuses;
            a class folder that is a link, not among `data.classes`, or beside folders of splits.
    """
    root = data_root(settings)
    if not root.is_dir():
        raise UserError(f"data.root={root}: not a folder")
    if settings.table is None:
        table = read_class_folders(settings, root)
    else:
        table = read_labelled_table(settings, root)
    files = [file_stamp(root, name) for name in table.names]
    if settings.table is not None and not any(files):
        raise UserError(
            f"{table_path(settings, root)}: column {settings.columns.image!r} names no file below "
            f"data.root={root}, the first is {table.names[0]!r} (paths need their ending)"
        )
    if table.patients is None:
        logger.warning("%s: without data.columns.patient each image counts as a patient", root)
    return Source(
        name="folder",
        classes=table.classes,
        multi_label=table.multi_label,
        image_ids=table.names,
        labels=table.labels,
        groups=table.names if table.patients is None else table.patients,
        centres=table.sites,
        load=partial(load_file, root, table.names, 2 * settings.image_size),
        fingerprint=fingerprint(
            reader="folder",
            root=str(root),
            files=list(zip(table.names, files, strict=True)),
            table=table.digest,
            columns=settings.columns.model_dump(),
            classes=settings.classes,
            multi_label=settings.multi_label,
            separator=settings.separator,
        ),
        moves=table.moves,
        splits=table.splits,
    )


def read_class_folders(settings: DataSettings, root: Path) -> LabelledTable:
    """What folders of classes say of the images in them, as a table would.

    Args:
        settings: `classes` and `multi_label`.
        root: resolved folder.

    Raises:
        UserError: see `read`.
    """
    if settings.multi_label:
        raise UserError("data.multi_label=true needs data.table, a folder gives one class")
    images = _images(root)
    tops = {name.split("/")[0] for name in images if "/" in name}
    split_tops = {top for top in tops if top.lower() in SPLIT_NAMES}
    if split_tops and split_tops != tops:
        raise UserError(
            f"data.root={root}: folder {min(split_tops)} is a split, {min(tops - split_tops)} is "
            "not; allowed are folders of splits or folders of classes"
        )
    level = 1 if split_tops else 0
    names = tuple(name for name in images if name.count("/") > level)
    if not names:
        raise UserError(
            f"data.root={root}: no image found, allowed are {', '.join(SUFFIXES)} in one folder "
            "for each class, or data.table"
        )
    if len(names) < len(images):
        stray = next(name for name in images if name.count("/") <= level)
        logger.warning("%s: %d images lie in no class folder and are left out, the first is %s",
                       root, len(images) - len(names), stray)  # fmt: skip
    given = [name.split("/")[level] for name in names]
    classes = chosen_classes(settings, sorted(set(given)), root)
    for name in dict.fromkeys(given):
        refuse_unknown(classes, name, f"data.root={root}")
    labels = np.array(given)[:, None] == np.array(classes)  # (N, C)
    splits = tuple(SPLIT_NAMES[name.split("/")[0].lower()] for name in names) if level else None
    return LabelledTable(
        names, classes, False, labels.astype(np.float32), None, None, splits, digest=b""
    )


def _images(root: Path) -> list[str]:
    """Sorted paths of all images below the root; links to folders are refused, not followed."""

    def refuse(error: OSError) -> None:
        raise UserError(f"data.root={root}: {error.filename}: {error.strerror}")

    found = []
    for place, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "." and name != FOREIGN]
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                raise UserError(f"data.root={root}: folder {name} is a link, which is not followed")
        relative = Path(place).relative_to(root)
        found += [
            image_path(root, (relative / name).as_posix())
            for name in files
            if name[0] != "." and name.lower().endswith(SUFFIXES)
        ]
    return sorted(found)
