"""Sex and age of an image, as tables write them, in the subgroups of evaluations."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from mediffusion_core.data.checks.check_result import CheckResult

SEX, AGE = "sex", "age"
UNKNOWN = ""
"""Where a table gives no sex or age, or one that is not read."""
_FIRST_YEARS = (0, 18, 40, 60, 80)
AGE_BANDS = (
    *(f"{first}-{after - 1}" for first, after in pairwise(_FIRST_YEARS)),
    f"{_FIRST_YEARS[-1]} and over",
)
ATTRIBUTES = {SEX: ("female", "male"), AGE: AGE_BANDS}
"""The subgroups of each attribute."""

_SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}
_AGE = re.compile(r"(?P<number>\d{1,3}(?:\.\d+)?)\s*(?P<unit>[YMWD]?)")
_IN_A_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.0, "D": 365.0}
_OLDEST = 120
_NOT_KNOWN = ("", "unknown", "unk", "u", "other", "o", "na", "n/a", "nan", "none")
"""Cells by which tables say that they give no sex or age, and those of another sex in DICOM."""

Attributes = dict[str, tuple[str, ...]]
"""By attribute, the subgroup of each of N images, or `UNKNOWN`."""


def sex_of(cell: str) -> str:
    """The subgroup of a cell such as `F` or `male`; `UNKNOWN` for any other."""
    return _SEXES.get(cell.strip().lower(), UNKNOWN)


def age_band_of(cell: str) -> str:
    """The subgroup of a cell in years, or in DICOM's form such as `058Y` and `018M`."""
    found = _AGE.fullmatch(cell.strip().upper())
    years = float(found["number"]) / _IN_A_YEAR[found["unit"]] if found else -1.0
    if not 0 <= years <= _OLDEST:
        return UNKNOWN
    return AGE_BANDS[sum(years >= first for first in _FIRST_YEARS) - 1]


READ: dict[str, Callable[[str], str]] = {SEX: sex_of, AGE: age_band_of}
READABLE = {
    SEX: "F, M, female and male",
    AGE: f"years from 0 to {_OLDEST}, and numbers with Y, M, W or D",
}


def attributes_of(
    cells: Mapping[str, Sequence[str]],
) -> tuple[Attributes, tuple[CheckResult, ...]]:
    """The subgroups of N images, and a warning for the cells of each attribute that are not read.

    Args:
        cells: By attribute, the cell of each image. There is no warning for `unknown` and the like.
    """
    attributes: Attributes = {}
    notes = []
    for name, given in cells.items():
        meant = {cell: READ[name](cell) for cell in set(given)}
        attributes[name] = tuple(meant[cell] for cell in given)
        # The cells themselves are not repeated: a wrong column may hold names.
        lost = sum(
            meant[cell] == UNKNOWN and cell.strip().lower() not in _NOT_KNOWN for cell in given
        )
        if lost:
            text = f"{lost} images have a {name} that is not read; allowed are {READABLE[name]}"
            notes.append(CheckResult("warning", text))
    return attributes, tuple(notes)
