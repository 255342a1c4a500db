"""A site's own table of images, labels, patients, sites and splits, checked as a whole."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.dataset import SPLITS, Move, first_shared
from mediffusion_core.data.readers.isic2019 import unite_lesions
from mediffusion_core.data.readers.tables import image_path, read_table
from mediffusion_core.settings import ColumnSettings, DataSettings, did_you_mean

MISSING = ("", "na", "n/a", "nan", "<na>", "null")
"""Cells that programs write where they know nothing, in small or capital letters."""

HEALTHY = ("no finding", "none")
"""Cells of a table of findings that say that there is none."""

ANSWERS = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}

SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(("val", "valid", "dev"), "validation")
"""How data sets call their splits, to how we do."""

Rows = dict[str, dict[str, str]]
"""Image to its cells by column, without blanks around them; "" where a cell says nothing."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledTable:
    """What a table says of N images; C classes.

    Attributes:
        names: N distinct paths relative to the root, with `/` between their parts.
        classes: C class names.
        multi_label: whether an image may have several classes, or none.
        labels: (N, C), 0 or 1, nan where the label is missing.
        patients: N names, None where the table has no such column.
        sites: N names, None where the table has no such column; a patient has one.
        splits: N of `contract.SPLITS`, None where the table has no such column; a patient has one.
        digest: SHA-256 of the table's bytes.
        moves: the images that stand in another site than the table gives.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    multi_label: bool
    labels: NDArray[np.float32]
    patients: tuple[str, ...] | None
    sites: tuple[str, ...] | None
    splits: tuple[str, ...] | None
    digest: bytes
    moves: tuple[Move, ...] = ()


def read_labelled_table(settings: DataSettings, root: Path) -> LabelledTable:
    """Reads `data.table`, which is absolute or relative to `data.root`, by `data.columns`.

    With one label column a cell names the class, or several between `data.separator` where
    `data.multi_label`; with several label columns each is a class, and its cells are 0 or 1. The
    classes are those of `data.classes`, else those that occur by name, or the columns in their
    order. A patient whose images stand in several sites goes whole to the one that holds most.

    Args:
        settings: table, columns, classes, multi_label and separator.
        root: resolved folder that the images lie in.

    Raises:
        UserError: missing table or column; a path that leads out of the root; an image listed
            twice with different cells; an unknown class; a label that is neither 0 nor 1 or not
            one-hot; an image without a patient, site or split where there is a column for it; an
            unknown split; a patient in two splits; no class at all.
    """
    path = table_path(settings, root)
    columns = settings.columns
    rows = _distinct_rows(path, columns)
    names, digest = tuple(rows), hashlib.sha256(path.read_bytes()).digest()
    if isinstance(columns.label, str):
        classes, labels = _named_labels(path, settings, columns.label, rows)
    else:
        classes, labels = _column_labels(path, settings, columns.label, rows)

    patients = _filled(path, columns.patient, rows)
    sites = _filled(path, columns.site, rows)
    splits = _splits(path, columns.split, rows)
    if patients and splits and (shared := first_shared(patients, splits)):
        both = " and ".join(splits[index] for index in shared)
        raise UserError(f"{path}: patient {patients[shared[0]]!r} is in two splits, {both}")
    moves: tuple[Move, ...] = ()
    if patients is not None and sites is not None:
        sites, moves = unite_lesions(names, patients, sites)
        for move in moves:
            logger.info("image %s moves from %s to %s, where most images of its patient are",
                        move.image_id, move.given, move.centre)  # fmt: skip
    return LabelledTable(
        names, classes, settings.multi_label, labels, patients, sites, splits, digest, moves
    )


def table_path(settings: DataSettings, root: Path) -> Path:
    """Where `data.table` lies.

    Raises:
        UserError: where it is not set or is no file.
    """
    if settings.table is None:
        raise UserError(f"data.source={settings.source} needs data.table=<table of labels>")
    path = root / settings.table
    if not path.is_file():
        raise UserError(f"data.table={settings.table}: {path} is no file")
    return path


def chosen_classes(settings: DataSettings, found: Sequence[str], where: Path) -> tuple[str, ...]:
    """`data.classes`, else the classes found.

    Raises:
        UserError: for classes given twice, none at all, and a single one that excludes no other.
    """
    classes = settings.classes or tuple(found)
    what = "data.classes" if settings.classes else f"{where}: columns.label"
    for name in classes:
        if classes.count(name) > 1:
            raise UserError(f"{what} lists {name!r} twice")
    if not classes:
        raise UserError(f"{where}: no image has a class, and data.classes is not set")
    if len(classes) == 1 and not settings.multi_label:
        raise UserError(
            f"{where}: {classes[0]!r} is the only class, at least two are needed "
            "(or data.multi_label=true)"
        )
    return classes


def refuse_unknown(classes: Sequence[str], given: str, where: str) -> None:
    """Checks that a class is one of those allowed.

    Raises:
        UserError: naming the class and where it stands.
    """
    if given not in classes:
        hint = did_you_mean(given, list(classes))
        raise UserError(f"{where}: unknown class {given!r}, allowed are {', '.join(classes)}{hint}")


def _distinct_rows(path: Path, columns: ColumnSettings) -> Rows:
    labels = (columns.label,) if isinstance(columns.label, str) else columns.label
    others = (columns.patient, columns.site, columns.split)
    wanted = tuple(dict.fromkeys((columns.image, *labels, *filter(None, others))))
    rows: Rows = {}
    doubled = []
    for number, row in enumerate(read_table(path, wanted), 1):
        cells = {name: _clean(row[name]) for name in wanted}
        if not cells[columns.image]:
            raise UserError(f"{path}: row {number} has no {columns.image!r}")
        name = cells[columns.image] = image_path(path, cells[columns.image])
        if rows.setdefault(name, cells) != cells:
            different = [column for column in wanted if rows[name][column] != cells[column]]
            raise UserError(
                f"{path}: image {name} is listed twice, with different {different[0]!r}: "
                f"{rows[name][different[0]]!r} and {cells[different[0]]!r}"
            )
        if rows[name] is not cells:
            doubled.append(name)
    if doubled:
        logger.warning("%s: %d rows list an image again and are left out, the first is %s",
                       path, len(doubled), doubled[0])  # fmt: skip
    return rows


def _clean(cell: str) -> str:
    cell = cell.strip()
    return "" if cell.lower() in MISSING else cell


def _named_labels(
    path: Path, settings: DataSettings, column: str, rows: Rows
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    found = {name: _named(path, settings, name, cells[column]) for name, cells in rows.items()}
    occurring = sorted({given for names in found.values() for given in names or ()})
    classes = chosen_classes(settings, occurring, path)
    position = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(rows), len(classes)), np.float32)
    for row, (name, names) in enumerate(found.items()):
        if names is None:
            labels[row] = np.nan
            continue
        for given in names:
            refuse_unknown(classes, given, f"{path}: image {name}")
            labels[row, position[given]] = 1
    return classes, labels


def _named(path: Path, settings: DataSettings, name: str, cell: str) -> list[str] | None:
    """Classes that a cell names; None where the label is missing."""
    if not cell:
        return None
    if not settings.multi_label:
        return [cell]
    given = [part.strip() for part in cell.split(settings.separator) if part.strip()]
    classes = settings.classes or ()
    present = [part for part in given if part in classes or part.lower() not in HEALTHY]
    if present and len(present) < len(given):
        raise UserError(f"{path}: image {name} has a finding and none at once, {cell!r}")
    return present


def _column_labels(
    path: Path, settings: DataSettings, columns: tuple[str, ...], rows: Rows
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    classes = chosen_classes(settings, columns, path)
    for column in columns:
        refuse_unknown(classes, column, f"data.columns.label={column!r}")
    # Nobody looked for a finding that has no column. A class that excludes the others is absent
    # where one of them is present.
    labels = np.full((len(rows), len(classes)), np.nan, np.float32)
    position = [classes.index(column) for column in columns]
    for row, (name, cells) in enumerate(rows.items()):
        answers = [_answer(path, name, column, cells[column]) for column in columns]
        if not settings.multi_label and not np.isnan(answers).all():
            if np.isnan(answers).any() or sum(answers) != 1:
                raise UserError(
                    f"{path}: the label of {name} is not one-hot, allowed is 1 in one label "
                    "column and 0 in the others, or no cell filled (data.multi_label=false)"
                )
            labels[row] = 0
        labels[row, position] = answers
    return classes, labels


def _answer(path: Path, name: str, column: str, cell: str) -> float:
    if not cell:
        return np.nan
    if cell.lower() not in ANSWERS:
        raise UserError(
            f"{path}: image {name} has {cell!r} in column {column!r}, allowed are 0, 1, true, "
            "false or nothing"
        )
    return ANSWERS[cell.lower()]


def _filled(path: Path, column: str | None, rows: Rows) -> tuple[str, ...] | None:
    if column is None:
        return None
    for name, cells in rows.items():
        if not cells[column]:
            raise UserError(f"{path}: image {name} has no {column!r}")
    return tuple(cells[column] for cells in rows.values())


def _splits(path: Path, column: str | None, rows: Rows) -> tuple[str, ...] | None:
    given = _filled(path, column, rows)
    if given is None:
        return None
    for name, split in zip(rows, given, strict=True):
        if split.lower() not in SPLIT_NAMES:
            allowed = ", ".join(SPLIT_NAMES)
            raise UserError(f"{path}: image {name} is in split {split!r}, allowed are {allowed}")
    return tuple(SPLIT_NAMES[split.lower()] for split in given)
