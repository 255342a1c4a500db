"""Intervals of figures that a bootstrap would bias: those of distances between sets of images.

A bootstrap repeats images. Each image then has itself for a neighbour, and a set of n is worth
0.63 n different ones: FID, KID, precision and coverage of such a set are others than those of n
images. Half-samples repeat nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Interval:
    """A figure of all images with its 95 % interval."""

    value: float
    low: float
    high: float


def half_sample_intervals(
    figures: Callable[[Tensor, Tensor], Figures],
    samples: Tensor,
    real: Tensor,
    groups: tuple[Sequence[str], Sequence[str]],
    num_draws: int,
    seed: int,
) -> dict[str, Interval]:
    """Figures of two sets with intervals by the delete-half jackknife.

    Over random halves of n observations a figure spreads as it does over samples of n: of the
    variance of the deletion of d, (n - d) / d · E(θ_half - E θ_half)², the factor is 1 at d = n/2
    (Shao and Wu, Annals of Statistics 17, 1989). A half's figure has another bias, so that only
    the deviations from their mean are put around the figure of all images.

    Args:
        figures: Maps features (M, D) and (N, D) to named figures.
        samples: Features (M, D).
        real: Features (N, D).
        groups: What is drawn together in each set: the patient of each image, or, of drawn ones,
            the image itself; half of the groups are drawn.
        num_draws: Halves that are drawn.
        seed: Of the draws.
    """
    whole = figures(samples, real)
    generator = torch.Generator().manual_seed(seed)
    draws = [
        figures(
            samples[_half(groups[0], generator)],
            real[_half(groups[1], generator)],
        )
        for _ in range(num_draws)
    ]
    return {name: _around(value, [draw[name] for draw in draws]) for name, value in whole.items()}


def _half(groups: Sequence[str], generator: torch.Generator) -> Tensor:
    """Positions of the images of half of the groups, (m,)."""
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=generator).tolist()
    chosen = {names[place] for place in order[: math.ceil(len(names) / 2)]}
    return torch.tensor([place for place, group in enumerate(groups) if group in chosen])


def _around(value: float, halves: list[float]) -> Interval:
    drawn = torch.tensor(halves, dtype=torch.float64)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(drawn - drawn.mean(), ends).tolist()
    return Interval(value, value + low, value + high)
