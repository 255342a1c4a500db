"""How figures are written where a user reads them; one that was not measured is null."""

import math
from collections.abc import Mapping, Sequence

from mediffusion_core.evaluation.bootstrap import Estimate

NOT_MEASURED = "not measured"


def format_figure(value: float | None, spec: str = ".3f", unit: str = "") -> str:
    """A figure with its unit, or that it was not measured.

    Args:
        value: the figure, None where it was not measured.
        spec: how Python's `format` writes it.
        unit: what follows the number.
    """
    return NOT_MEASURED if value is None else f"{value:{spec}}{unit}"


def format_comparison(first: float | None, second: float | None) -> tuple[str, str, str]:
    """Two figures and by how much the first is above the second."""
    difference = None if first is None or second is None else first - second
    return format_figure(first), format_figure(second), format_figure(difference, "+.3f")


def format_estimate(estimate: Estimate, spec: str, *, counted: bool = True) -> str:
    """A figure with its interval and, if `counted`, its number of images; `-` of none."""
    if math.isnan(estimate.value):
        return "-"
    bounds = f"{estimate.low:{spec}} to {estimate.high:{spec}}"
    return f"{estimate.value:{spec}} ({bounds}{f'; {estimate.count}' if counted else ''})"


def format_interval(figure: Mapping[str, float | None], spec: str) -> str:
    """A figure of a study's JSON, `value` with `low` and `high`."""
    low, high = (format_figure(figure[end], spec) for end in ("low", "high"))
    return f"{format_figure(figure['value'], spec)} ({low} to {high})"


def markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, one line a row."""
    rule = ["---"] * len(headings)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))
