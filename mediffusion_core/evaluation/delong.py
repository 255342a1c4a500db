"""Interval of an AUC from confusion counts alone, by DeLong's variance (DeLong et al. 1988)."""

import torch
from torch import Tensor

from mediffusion_core.evaluation.classification import auc_from_counts

_NORMAL = 1.959964
"""Quantile of the normal distribution for 95 %."""


def delong_interval(counts: Tensor) -> Tensor:
    """The 95 % interval of each area, with images taken as independent.

    A positive's share of the negatives below it, and a negative's of the positives above it, have
    the variances of the two sums that make up the area's.

    Args:
        counts: (C, T, 2, 2) from `classification.threshold_counts`, or a sum of them.

    Returns:
        (C, 2) float64 within [0, 1], nan where a class has under two positives or negatives.
    """
    areas = auc_from_counts(counts)  # (C,)
    totals = counts[:, :1].sum(dim=-1, keepdim=True)  # (C, 1, 2, 1)
    above = torch.cat([totals, counts[..., 1:]], dim=1)[..., 0].double()  # (C, T + 1, 2)
    nothing = torch.zeros_like(above[:, :1])
    inside = above - torch.cat([above[:, 1:], nothing], dim=1)  # in each gap between thresholds
    negatives, positives = inside.unbind(dim=-1)  # (C, T + 1) each
    below = negatives.cumsum(dim=1) - negatives / 2
    over = positives.sum(dim=1, keepdim=True) - positives.cumsum(dim=1) + positives / 2
    variance = _part(below, positives, negatives) + _part(over, negatives, positives)
    half = _NORMAL * variance.sqrt()
    return torch.stack([areas - half, areas + half], dim=1).clamp(0, 1)


def _part(placed: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Variance over the own samples of their placement among the others, over their number."""
    number = own.sum(dim=1)
    placement = placed / others.sum(dim=1, keepdim=True)
    mean = (own * placement).sum(dim=1) / number
    squares = (own * (placement - mean[:, None]).square()).sum(dim=1)
    variance: Tensor = squares / (number - 1) / number
    return variance
