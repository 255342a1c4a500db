"""Losses of the two stages, one value for each sample.

Callers divide sums over a batch by a constant: a divisor that depends on the batch would couple the
samples and void the bound of DP-SGD.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def diffusion_loss(output: Tensor, target: Tensor) -> Tensor:
    """‖ε̂ - ε‖² / (c·h·w), or the same of v or z_0, (B,) (arXiv 2006.11239, eq. 14)."""
    return (output - target).square().flatten(1).mean(dim=1)


def classification_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Cross-entropy of each sample, (B,): binary over the known findings, or categorical.

    Args:
        logits: (B, C).
        targets: (B, C) in {0, 1}, NaN where a label is missing, one-hot if not `multi_label`; or
            probabilities.
        multi_label: Whether the classes are independent (ChestX-ray14) or exclusive (ISIC).

    Returns:
        The mean over the C findings with missing ones counted as 0, or the categorical
        cross-entropy, 0 where the class is missing.
    """
    known = ~targets.isnan()
    filled = torch.where(known, targets, torch.zeros_like(targets))
    if multi_label:
        per_class = F.binary_cross_entropy_with_logits(logits, filled, reduction="none")
        return (per_class * known).mean(dim=1)
    return -(filled * F.log_softmax(logits, dim=1)).sum(dim=1)


def reconstruction_loss(reconstructions: Tensor, images: Tensor, edge_weight: float) -> Tensor:
    """Mean absolute error plus `edge_weight` times that of finite differences, (B,).

    The second term keeps thin structures (ribs, vessels, hairs) that the first one blurs away.
    """
    error = reconstructions - images  # (B, C, H, W)
    pixels = error.abs().flatten(1).mean(dim=1)
    across = (error[..., :, 1:] - error[..., :, :-1]).abs().flatten(1).mean(dim=1)
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().flatten(1).mean(dim=1)
    return pixels + edge_weight * (across + down)
