"""Faithfulness of attribution maps (deletion and insertion), and agreement of two maps."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from mediffusion_core.evaluation.cout import replaced_by_rank

STEPS = 20

Probability = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) to the probability of the explained class of each, (B,)."""


def deletion_curve(
    images: Tensor, substitute: Tensor, maps: Tensor, probability: Probability, steps: int = STEPS
) -> Tensor:
    """The class's probability while pixels are deleted, highest map value first; (B, steps + 1).

    arXiv 1806.07421, section 3.1. The sooner it falls, the better the map.

    Args:
        images: (B, C, H, W).
        substitute: Replaces deleted pixels, (C, H, W).
        maps: (B, H, W), signed or not.
        probability: Of the class.
        steps: Deletions, each of an equal share of the pixels.
    """
    return _curve(images, substitute.expand_as(images), maps, probability, steps)


def insertion_curve(
    images: Tensor, substitute: Tensor, maps: Tensor, probability: Probability, steps: int = STEPS
) -> Tensor:
    """The class's probability while pixels are inserted, highest map value first; (B, steps + 1).

    As `deletion_curve`, but from the substitute to the image. The sooner it rises, the better the
    map.
    """
    return _curve(substitute.expand_as(images), images, maps, probability, steps)


def _curve(
    images: Tensor, others: Tensor, maps: Tensor, probability: Probability, steps: int
) -> Tensor:
    replaced = replaced_by_rank(images, others, maps, steps)
    return torch.stack([probability(one) for one in replaced], dim=1)


def area(curves: Tensor) -> Tensor:
    """Area under each curve (B, steps + 1) over the share of pixels, by trapezoids, (B,)."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)


def rank_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's ρ over the pixels of two maps (B, H, W), (B,); nan where one is constant."""
    ranks = [
        torch.from_numpy(rankdata(maps.flatten(1).numpy(), axis=1).astype(np.float64))
        for maps in (first, second)
    ]
    one, two = (rank - rank.mean(dim=1, keepdim=True) for rank in ranks)
    agreement: Tensor = (one * two).sum(dim=1) / (one.norm(dim=1) * two.norm(dim=1))
    return agreement
