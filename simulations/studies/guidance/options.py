"""What `fed-mediffusion study guidance` was asked to compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from configs.compose import change
from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import CounterfactualSettings, Settings


@dataclass(frozen=True)
class Options:
    """What is to be compared, and on how many images."""

    scales: tuple[float, ...]
    starts: tuple[float, ...]
    steps: tuple[int, ...]
    reference: tuple[tuple[float, float], ...]
    """(s, t) of the published procedure that validation images choose of, t as a fraction of T."""
    grid_images: int
    """Validation images a wish."""
    images: int
    """Test images a wish."""
    overrides: tuple[str, ...]
    """Changes of our guidance, as `num_inference_steps=10`."""
    ours_alone: bool = False
    """Without grid, without parts left out, without the published procedure."""
    between: tuple[str, ...] = ()
    """Two exclusive classes; the most frequent ones where none is named."""


def parse_options(
    scales: str,
    starts: str,
    steps: str,
    reference: str,
    grid_images: int,
    images: int,
    overrides: Sequence[str],
    *,
    ours_alone: bool = False,
    between: str = "",
) -> Options:
    """The options as the command line has them: numbers with commas, the reference as `s:t`.

    Raises:
        UserError: naming what is no number, or out of its range.
    """
    pairs = [one.partition(":")[::2] for one in reference.split(",") if one]
    return Options(
        scales=_numbers("scales", scales, 1e6),
        starts=_numbers("starts", starts, 1.0),
        steps=tuple(int(one) for one in _numbers("steps", steps, 1000, whole=True)),
        reference=tuple(
            (
                _number("reference", scale, 1e6),
                _number("reference", start, 1.0),
            )
            for scale, start in pairs
        ),
        grid_images=grid_images,
        images=images,
        overrides=tuple(overrides),
        ours_alone=ours_alone,
        between=class_names(between),
    )


def class_names(between: str) -> tuple[str, ...]:
    """Names with commas."""
    return tuple(between.split(",")) if between else ()


def changed_guidance(settings: Settings, overrides: Sequence[str]) -> CounterfactualSettings:
    """A run's guidance with changes on top, checked beside the run's other settings.

    Raises:
        UserError: one line that names what is wrong.
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
        what = "whole numbers" if whole else "numbers"
        raise UserError(f"--{name} {text!r}: allowed are {what} above 0, up to {most:g}")
    return value
