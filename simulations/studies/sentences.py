"""Sentences about figures; a difference whose interval includes 0 is not shown."""

import math
from collections.abc import Sequence

from mediffusion_core.evaluation.bootstrap import Estimate

NOT_SHOWN = "no difference is shown"


def written(estimate: Estimate, spec: str) -> str:
    """A figure with its interval, where it has one; `-` if it is missing."""
    if math.isnan(estimate.value):
        return "-"
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return f"{estimate.value:{spec}}"
    return f"{estimate.value:{spec}} ({estimate.low:{spec}} to {estimate.high:{spec}})"


def is_shown(difference: Estimate) -> bool:
    """Whether the interval of a difference excludes 0."""
    return difference.low > 0 or difference.high < 0


def verdict(difference: Estimate, more: str = "higher", less: str = "lower") -> str:
    """The direction of a difference, or that none is shown."""
    if not is_shown(difference):
        return NOT_SHOWN
    return more if difference.value > 0 else less


def compared(what: str, difference: Estimate, spec: str = "+.3f") -> str:
    """`what` differs by a figure with its interval, and the verdict."""
    return f"{what} {written(difference, spec)}, {verdict(difference)}"


def apart(first: Estimate, second: Estimate) -> bool:
    """Whether two intervals do not overlap, for figures without a paired interval."""
    return first.low > second.high or first.high < second.low


def compared_apart(what: str, first: Estimate, second: Estimate, spec: str) -> str:
    """Two figures with intervals of their own; without overlap the first is higher or lower."""
    if not apart(first, second):
        result = f"the intervals overlap, so {NOT_SHOWN}"
    else:
        result = "higher" if first.value > second.value else "lower"
    return f"{what} {written(first, spec)} against {written(second, spec)}: {result}"


def listed(parts: Sequence[str]) -> str:
    """One sentence of parts; a symbol such as λ is no word to capitalise."""
    text = "; ".join(parts)
    first = text[:1].upper() if text[:1].isascii() else text[:1]
    return f"{first}{text[1:]}."
