"""A site's own table of images, labels, patients, sites and splits, checked as a whole."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.attributes import AGE, SEX, Attributes, attributes_of
from mediffusion_core.data.checks.check_result import CheckResult
from mediffusion_core.data.dataset import Move, first_shared
from mediffusion_core.data.readers.class_names import spelling_findings, united
from mediffusion_core.data.readers.isic2019 import unite_lesions
from mediffusion_core.data.readers.label_cells import DOUBTFUL, Rows, read_labels
from mediffusion_core.data.readers.split_names import ALLOWED, split_of
from mediffusion_core.data.readers.tables import image_path, read_table
from mediffusion_core.settings import ColumnSettings, DataSettings

MISSING = {
    "", "na", "n/a", "n.a.", "nan", "-nan", "nat", "<na>", "null", "(null)", "#n/a", "#na",
    "#n/a n/a", "1.#qnan", "-1.#qnan", "1.#ind", "-1.#ind", "#ref!", "#value!", "#div/0!", "#name?",
    "#num!", "#null!",
}  # fmt: skip
"""Cells that programs write where they know nothing, in small or capital letters."""

Shown = Callable[[str], str]
"""An image's path to what it may be called where others read it."""

Taken = dict[str, Counter[str]]
"""Column to the cells that are read as missing although they say something."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledTable:
    """Labels, patients and splits of N images from a table; C classes.

    Attributes:
        names: N distinct paths relative to the root, with `/` between their parts.
        classes: C class names.
        multi_label: whether an image may have several classes, or none.
        labels: (N, C), 0 or 1, nan where the label is missing.
        patients: N names, None where the table has no such column.
        sites: N names, None where the table has no such column; a patient has one.
        splits: N of `dataset.SPLITS`, None where the table has no such column; a patient has one.
        digest: SHA-256 of the table's bytes.
        moves: the images that stand in another site than the table gives.
        notes: cells that are read as missing or as another class, and rows that are left out.
        attributes: by attribute for which the table has a column, the subgroup of each image.
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
    notes: tuple[CheckResult, ...] = ()
    attributes: Attributes = field(default_factory=dict)


def read_labelled_table(settings: DataSettings, root: Path, shown: Shown = str) -> LabelledTable:
    """Reads `data.table`, which is absolute or relative to `data.root`, by `data.columns`.

    With one label column a cell names the class, or several between `data.separator` where
    `data.multi_label`; with several label columns each is a class, and its cells are 0 or 1. The
    classes are those of `data.classes`, else those that occur by name, or the columns in their
    order. A patient whose images stand in several sites goes whole to the one that holds most.

    Args:
        settings: table, columns, classes, multi_label and separator.
        root: resolved folder that the images lie in.
        shown: how an image's path may be called in notes.

    Raises:
        UserError: missing table or column; a path that leads out of the root; an image listed
            twice with different cells; an unknown class; a label that is neither 0 nor 1 or not
            one-hot; an image without a patient, site or split where there is a column for it; an
            unknown split; a patient in two splits; no class at all.
    """
    path = table_path(settings, root)
    columns = settings.columns
    rows, taken, notes = _distinct_rows(path, settings, shown)
    names, digest = tuple(rows), hashlib.sha256(path.read_bytes()).digest()
    classes, labels, spelt = read_labels(path, settings, rows)
    patients, patients_spelt = _united(path, columns.patient, rows, taken)
    sites, sites_spelt = _united(path, columns.site, rows, taken)
    splits = _splits(path, columns.split, rows, taken)
    if patients and splits and (shared := first_shared(patients, splits)):
        both = " and ".join(splits[index] for index in shared)
        raise UserError(f"{path}: patient {patients[shared[0]]!r} is in two splits, {both}")
    attributes, unread = _attributes(columns, rows)
    moves: tuple[Move, ...] = ()
    if patients is not None and sites is not None:
        sites, moves = unite_lesions(names, patients, sites)
        for move in moves:
            logger.info("image %s moves from %s to %s, where most images of its patient are",
                        move.image_id, move.given, move.centre)  # fmt: skip
    return LabelledTable(
        names,
        classes,
        settings.multi_label,
        labels,
        patients,
        sites,
        splits,
        digest,
        moves,
        (*notes, *spelt, *patients_spelt, *sites_spelt, *unread),
        attributes,
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


def _distinct_rows(
    path: Path, settings: DataSettings, shown: Shown
) -> tuple[Rows, Taken, list[CheckResult]]:
    """The rows by image, the cells that are read as missing, and what there is to say of rows."""
    columns, wanted = settings.columns, _wanted(settings.columns)
    labels = _label_columns(columns)
    rows: Rows = {}
    taken: Taken = {}
    doubled = []
    for number, row in enumerate(read_table(path, wanted), 1):
        cells = {name: row[name].strip() for name in wanted}
        for name, cell in cells.items():
            missing = MISSING if name in labels else MISSING | DOUBTFUL
            if cell.lower() in missing and cell not in (settings.classes or ()):
                cells[name] = ""
                if cell:
                    taken.setdefault(name, Counter())[cell] += 1
        if not cells[columns.image]:
            raise UserError(f"{path}: row {number} has no {columns.image!r}")
        name = cells[columns.image] = image_path(path, cells[columns.image])
        if rows.setdefault(name, cells) != cells:
            different = [column for column in wanted if rows[name][column] != cells[column]]
            raise UserError(
                f"{path}: image {shown(name)} is listed twice, with different {different[0]!r}: "
                f"{rows[name][different[0]]!r} and {cells[different[0]]!r}"
            )
        if rows[name] is not cells:
            doubled.append(name)
    text = f"{len(doubled)} rows list an image again and are left out, the first is "
    notes = [CheckResult("warning", text + shown(doubled[0]))] if doubled else []
    for column, cells_taken in taken.items():
        listed = ", ".join(f"{cell!r} {count}" for cell, count in cells_taken.most_common())
        notes.append(CheckResult("warning", f"column {column!r}: read as missing are {listed}"))
    return rows, taken, notes


def _wanted(columns: ColumnSettings) -> tuple[str, ...]:
    others = (columns.patient, columns.site, columns.split, columns.sex, columns.age)
    every = (columns.image, *_label_columns(columns), *filter(None, others))
    return tuple(dict.fromkeys(every))


def _label_columns(columns: ColumnSettings) -> tuple[str, ...]:
    return (columns.label,) if isinstance(columns.label, str) else columns.label


def _attributes(columns: ColumnSettings, rows: Rows) -> tuple[Attributes, tuple[CheckResult, ...]]:
    given = {SEX: columns.sex, AGE: columns.age}
    return attributes_of(
        {
            name: [cells[column] for cells in rows.values()]
            for name, column in given.items()
            if column is not None
        }
    )


def _united(
    path: Path, column: str | None, rows: Rows, taken: Taken
) -> tuple[tuple[str, ...] | None, list[CheckResult]]:
    """The cells of a column of patients or sites, one spelling for each, and notes on the others.

    A patient of two spellings would stand in two splits.
    """
    given = _filled(path, column, rows, taken)
    if given is None:
        return None, []
    meant = united(given, None)
    notes = spelling_findings(f"column {column!r}", meant, "")
    return tuple(meant[cell] for cell in given), notes


def _filled(path: Path, column: str | None, rows: Rows, taken: Taken) -> tuple[str, ...] | None:
    if column is None:
        return None
    for name, cells in rows.items():
        if not cells[column]:
            said = ", ".join(map(repr, taken.get(column, ())))
            raise UserError(
                f"{path}: image {name} has no {column!r}"
                + (f" (read as missing are {said})" if said else "")
            )
    return tuple(cells[column] for cells in rows.values())


def _splits(path: Path, column: str | None, rows: Rows, taken: Taken) -> tuple[str, ...] | None:
    given = _filled(path, column, rows, taken)
    if given is None:
        return None
    splits = {cell: split_of(cell) for cell in given}
    for name, cell in zip(rows, given, strict=True):
        if splits[cell] is None:
            raise UserError(f"{path}: image {name} is in split {cell!r}, allowed are {ALLOWED}")
    return tuple(splits[cell] or "" for cell in given)
