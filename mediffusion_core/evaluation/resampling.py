"""Means with intervals over resampled patients: images of one patient are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.evaluation.classification import interval, multiplicities


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval and how many images it is of; nan where there are none."""

    value: float
    low: float
    high: float
    count: int


def estimate_mean(
    values: Tensor, groups: Sequence[str], num_bootstraps: int, seed: int
) -> Estimate:
    """Mean of the values that are there, with the percentile interval of a patient-bootstrap.

    Args:
        values: (n,), nan where nothing was measured.
        groups: Patient or lesion of each of the n.
        num_bootstraps: B.
        seed: Of the draws; the same seed and groups draw the same patients.
    """
    return _estimate(values, torch.ones_like(values), groups, num_bootstraps, seed)


def estimate_ratio(
    above: Tensor, below: Tensor, groups: Sequence[str], num_bootstraps: int, seed: int
) -> Estimate:
    """Ratio of two means over the images that have both, with its interval; else `estimate_mean`.

    A mean of ratios would be that of the few images whose denominator is almost 0.
    """
    return _estimate(above, below, groups, num_bootstraps, seed)


def _estimate(
    above: Tensor, below: Tensor, groups: Sequence[str], num_bootstraps: int, seed: int
) -> Estimate:
    there = above.isfinite() & below.isfinite()
    if not bool(there.any()):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    kept = [group for group, is_there in zip(groups, there.tolist(), strict=True) if is_there]
    weights = multiplicities(kept, num_bootstraps, seed).double()  # (m, B)
    above, below = above[there].double(), below[there].double()
    draws = (above @ weights) / (below @ weights)
    low, high = interval(draws)
    return Estimate(float(above.sum() / below.sum()), low, high, len(kept))
