"""Whether a map names the pixels that the classifier lives on, and how far two maps agree."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from mediffusion_core.evaluation.transition import replaced_by_rank

STEPS = 20

Probability = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to the probability of what is explained in each, (B,)."""


def deletion_curve(
    images: Tensor, substitute: Tensor, maps: Tensor, probability: Probability, steps: int = STEPS
) -> Tensor:
    """What is left of the class as the map's pixels go, the highest first; (B, steps + 1).

    arXiv 1806.07421, section 3.1. The sooner it falls, the better the map.

    Args:
        images: (B, C, H, W).
        substitute: What takes the place of deleted pixels, (C, H, W).
        maps: (B, H, W), signed or not.
        probability: Of the class.
        steps: Parts of the image that go one after the other.
    """
    return _along(images, substitute.expand_as(images), maps, probability, steps)


def insertion_curve(
    images: Tensor, substitute: Tensor, maps: Tensor, probability: Probability, steps: int = STEPS
) -> Tensor:
    """How the class comes as the map's pixels come, the highest first; (B, steps + 1).

    From the substitute to the image, else as `deletion_curve`. The sooner it rises, the better.
    """
    return _along(substitute.expand_as(images), images, maps, probability, steps)


def _along(
    images: Tensor, others: Tensor, maps: Tensor, probability: Probability, steps: int
) -> Tensor:
    way = replaced_by_rank(images, others, maps, steps)
    return torch.stack([probability(one) for one in way], dim=1)


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
