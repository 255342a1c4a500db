"""Texts of a run's figures; a figure that is absent or not finite reads "not measured"."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"


def measured(value: Any) -> float | None:
    """The value as a float, or None where it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 3, unit: str = "") -> str:
    """A figure with fixed digits, or "not measured"."""
    value = measured(value)
    return (
        NOT_MEASURED
        if value is None
        else f"{value:.{digits}f}{unit}".replace("-", "\N{MINUS SIGN}")
    )


def percent(value: Any, digits: int = 0) -> str:
    """A share in [0, 1] as a percentage, or "not measured"."""
    value = measured(value)
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f} %"


def count(value: Any) -> str:
    """A whole number with separators, or "not measured"."""
    value = measured(value)
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def duration(seconds: Any) -> str:
    """Seconds as hours, minutes and seconds, or "not measured"."""
    value = measured(seconds)
    if value is None:
        return NOT_MEASURED
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def interval(bounds: Any, digits: int = 3) -> str:
    """A 95 % interval such as `0.801 to 0.845`; empty where there is none."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or None in map(measured, bounds):
        return ""
    return f"{number(bounds[0], digits)} to {number(bounds[1], digits)}"


def inside(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The figures below a key; none where it is absent or null."""
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
