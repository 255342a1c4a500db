"""Alignment of the joint network's features with the directions of a public encoder's."""

import math
from functools import lru_cache

import torch
from torch import Tensor

SEED = 0


def alignment_errors(pooled: Tensor, directions: Tensor) -> Tensor:
    """The mean squared error of each row, ‖R h - T‖² / K.

    h are the pooled maps of the joint network, T the whitened features of a public encoder
    (`models.whitening`). R is a fixed random matrix, the same at all sites, so that it is neither
    averaged nor exported. REPA (arXiv 2410.06940, eq. 8) has a trained projection in its place.

    Args:
        pooled: h (B, F).
        directions: T (B, K).

    Returns:
        (B,) float32.
    """
    matrix = _projection(pooled.shape[1], directions.shape[1]).to(pooled.device)
    with torch.autocast(pooled.device.type, enabled=False):
        errors: Tensor = (pooled.float() @ matrix - directions).square().mean(dim=1)
    return errors


@lru_cache(maxsize=4)
def _projection(width: int, directions: int) -> Tensor:
    """R (F, K) with entries N(0, 1 / F)."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(width, directions, generator=generator) / math.sqrt(width)
