"""The options of `fed-mediffusion study guidance`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from configs.compose import change
from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import CounterfactualSettings, Settings


@dataclass(frozen=True)
class Grid:
    """Values of three settings of guidance; every combination is measured."""

    scales: tuple[float, ...]
    starts: tuple[float, ...]
    steps: tuple[int, ...]

    @classmethod
    def parse(cls, scales: str, starts: str, steps: str) -> "Grid":
        """The grid from numbers separated by commas.

        Raises:
            UserError: if a value is not a number, or out of range.
        """
        return cls(
            scales=_numbers("scales", scales, 1e6),
            starts=_numbers("starts", starts, 1.0),
            steps=tuple(int(one) for one in _numbers("steps", steps, 1000, whole=True)),
        )


@dataclass(frozen=True)
class Options:
    """The methods to compare, and the number of images."""

    grid: Grid
    reference: tuple[tuple[float, float], ...]
    """(s, t) of the published procedure, t in fractions of T; validation images select one."""
    grid_images: int
    """Validation images per target."""
    images: int
    """Test images per target."""
    overrides: tuple[str, ...] = ()
    """Changes of our guidance, for example `num_inference_steps=10`."""
    ours_alone: bool = False
    """Leaves out the grid, the ablations and the published procedure."""
    between: tuple[str, ...] = ()
    """Two exclusive classes; the two most frequent if empty."""


def parse_reference(text: str) -> tuple[tuple[float, float], ...]:
    """(s, t) of each `SCALE:START`, separated by commas.

    Raises:
        UserError: if a value is not a number, or out of range.
    """
    pairs = [one.partition(":")[::2] for one in text.split(",") if one]
    return tuple(
        (_number("reference", scale, 1e6), _number("reference", start, 1.0))
        for scale, start in pairs
    )


def changed_guidance(settings: Settings, overrides: Sequence[str]) -> CounterfactualSettings:
    """A run's guidance with overrides, validated together with the run's other settings.

    Raises:
        UserError: one line that names the wrong setting.
    """
    keys = [f"evaluation.counterfactual.{one}" for one in overrides]
    return change(settings, keys).evaluation.counterfactual


def _numbers(name: str, text: str, most: float, whole: bool = False) -> tuple[float, ...]:
    return tuple(_number(name, one, most, whole) for one in text.split(","))


def _number(name: str, text: str, most: float, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most or (whole and value != int(value)):
        kind = "whole numbers" if whole else "numbers"
        raise UserError(f"--{name} {text!r}: allowed are {kind} above 0, up to {most:g}")
    return value
