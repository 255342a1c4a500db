"""Means with bootstrap intervals over patients, since images of one patient are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.evaluation.classification import interval, multiplicities


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval and its number of images; nan where there are none."""

    value: float
    low: float
    high: float
    count: int


def estimate_mean(
    values: Tensor, groups: Sequence[str], num_bootstraps: int, seed: int
) -> Estimate:
    """Mean of the finite values, with the percentile interval of a bootstrap over patients.

    Args:
        values: (n,), nan where missing.
        groups: Patient or lesion of each of the n images.
        num_bootstraps: B.
        seed: Of the draws; the same seed and groups draw the same patients.
    """
    return _estimate(values, torch.ones_like(values), groups, num_bootstraps, seed)


def estimate_ratio(
    above: Tensor, below: Tensor, groups: Sequence[str], num_bootstraps: int, seed: int
) -> Estimate:
    """Ratio of two means over the images that have both values, with its bootstrap interval.

    A mean of ratios would depend mostly on the few images whose denominator is almost 0.

    Args:
        above: Numerators (n,), nan where missing.
        below: Denominators (n,), nan where missing.
        groups: As in `estimate_mean`.
        num_bootstraps: B.
        seed: As in `estimate_mean`.
    """
    return _estimate(above, below, groups, num_bootstraps, seed)


def _estimate(
    above: Tensor, below: Tensor, groups: Sequence[str], num_bootstraps: int, seed: int
) -> Estimate:
    finite = above.isfinite() & below.isfinite()
    if not bool(finite.any()):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    kept = [group for group, keep in zip(groups, finite.tolist(), strict=True) if keep]
    weights = multiplicities(kept, num_bootstraps, seed).double()  # (m, B)
    above, below = above[finite].double(), below[finite].double()
    draws = (above @ weights) / (below @ weights)
    low, high = interval(draws)
    return Estimate(float(above.sum() / below.sum()), low, high, len(kept))
