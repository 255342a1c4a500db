"""From the cells of a table to labels: one column that names classes, or a column for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.checks.finding import Finding
from mediffusion_core.data.readers.class_names import number_in, spelling_findings, united
from mediffusion_core.settings import DataSettings, did_you_mean

HEALTHY = ("no finding", "none")
"""Cells of a table of findings that say that there is none."""

ANSWERS = {"false": 0.0, "no": 0.0, "true": 1.0, "yes": 1.0}
"""Words that say whether an image has a finding, in small or capital letters, as 0 and 1 do."""

DOUBTFUL = {
    "none", "unknown", "missing", "not available", "not applicable", "-", "--", "---", "?", ".",
}  # fmt: skip
"""Cells that may say that something is unknown, and may be a class."""

SEPARATORS = "|;,"
MANY = 1000
"""Classes beyond which a column names something else, such as ages or images."""

Rows = dict[str, dict[str, str]]
"""Image to its cells by column, without blanks around them; "" where a cell says nothing."""

Labels = tuple[tuple[str, ...], NDArray[np.float32], list[Finding]]
"""C classes, labels (N, C), and what there is to say of them."""


def read_labels(path: Path, settings: DataSettings, rows: Rows) -> Labels:
    """The labels of a table's N images.

    Args:
        path: the table, for errors.
        settings: columns, classes, multi_label and separator.
        rows: the cells of each image.

    Raises:
        UserError: what `chosen_classes` and `refuse_unknown` refuse; a cell that is no answer; a
            label that is not one-hot where classes exclude each other.
    """
    given = settings.columns.label
    if not isinstance(given, str):
        return _answered(path, settings, {column: column for column in given}, rows)
    if settings.multi_label and _is_one_finding(settings, given, rows):
        alone = settings.classes and len(settings.classes) == 1
        name = settings.classes[0] if settings.classes and alone else given
        return _answered(path, settings, {name: given}, rows)
    return _named(path, settings, given, rows)


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
    if len(classes) > MANY and not settings.classes:
        raise UserError(
            f"{where}: {len(classes)} classes are found, allowed are {MANY}; "
            "is columns.label the column of classes?"
        )
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


def _is_one_finding(settings: DataSettings, column: str, rows: Rows) -> bool:
    """Whether a column answers about one finding, rather than naming findings."""
    cells = {cells[column] for cells in rows.values()} - {""}
    listed = cells & set(settings.classes or ())
    return bool(cells) and not listed and all(_answer_in(cell) is not None for cell in cells)


def _named(path: Path, settings: DataSettings, column: str, rows: Rows) -> Labels:
    found = {name: _names_in(path, settings, name, cells[column]) for name, cells in rows.items()}
    occurring = [given for names in found.values() for given in names or ()]
    meant = united(occurring, settings.classes)
    classes = chosen_classes(settings, sorted(set(meant.values())), path)
    if len(classes) > 2 and all(_answer_in(name) is not None for name in classes):
        raise UserError(
            f"{path}: column {column!r} says yes and no in several ways, {', '.join(classes)}; "
            "allowed is one, or data.multi_label=true for one finding"
        )
    position = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(rows), len(classes)), np.float32)
    for row, (name, names) in enumerate(found.items()):
        if names is None:
            labels[row] = np.nan
            continue
        for given in names:
            refuse_unknown(classes, meant[given], f"{path}: image {name}")
            labels[row, position[meant[given]]] = 1
    notes = [*spelling_findings(f"column {column!r}", meant), *_odd_classes(settings, classes)]
    return classes, labels, notes


def _odd_classes(settings: DataSettings, classes: Sequence[str]) -> list[Finding]:
    """Warnings of classes that may be no class, or several, where the user has listed none."""
    if settings.classes:
        return []
    notes = [
        f"class {name!r} may stand for a missing label, which an empty cell is"
        for name in classes
        if name.casefold() in DOUBTFUL
    ]
    for sign in SEPARATORS if settings.multi_label else SEPARATORS[:2]:
        joined = [name for name in classes if sign in name]
        if joined:
            text = f"class {joined[0]!r} has {sign!r} in its name; where it means several findings"
            notes.append(f"{text}, set data.multi_label=true and data.separator={sign}")
    return [Finding("warning", text) for text in notes]


def _names_in(path: Path, settings: DataSettings, name: str, cell: str) -> list[str] | None:
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


def _answered(path: Path, settings: DataSettings, columns: Mapping[str, str], rows: Rows) -> Labels:
    """Labels of classes that have a column each, whose cells are answers."""
    if not isinstance(settings.columns.label, str) and len(columns) < len(settings.columns.label):
        twice = next(n for n in columns if settings.columns.label.count(n) > 1)
        raise UserError(f"{path}: columns.label lists {twice!r} twice")
    classes = chosen_classes(settings, tuple(columns), path)
    for name in columns:
        refuse_unknown(classes, name, f"data.columns.label={name!r}")
    # A finding without a column is unknown. A class that excludes the others is absent where one
    # of them is present.
    labels = np.full((len(rows), len(classes)), np.nan, np.float32)
    position = [classes.index(name) for name in columns]
    for row, (image, cells) in enumerate(rows.items()):
        answers = [_answer(path, image, column, cells[column]) for column in columns.values()]
        if not settings.multi_label and not np.isnan(answers).all():
            if np.isnan(answers).any() or sum(answers) != 1:
                raise UserError(
                    f"{path}: the label of {image} is not one-hot, allowed is 1 in one label "
                    "column and 0 in the others, or no cell filled (data.multi_label=false)"
                )
            labels[row] = 0
        labels[row, position] = answers
    return classes, labels, []


def _answer(path: Path, name: str, column: str, cell: str) -> float:
    if not cell:
        return np.nan
    answer = _answer_in(cell)
    if answer is None:
        raise UserError(
            f"{path}: image {name} has {cell!r} in column {column!r}, allowed are 0, 1, true, "
            "false, yes, no or nothing"
        )
    return answer


def _answer_in(cell: str) -> float | None:
    """1 for yes, 0 for no, None for a cell that says something else."""
    number = number_in(cell)
    if number is None:
        return ANSWERS.get(cell.lower())
    return float(number) if number in (0, 1) else None
