"""Losses of the two stages, one value a sample; who averages, divides by a constant."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mediffusion_core.settings import Prediction


def diffusion_loss(output: Tensor, target: Tensor) -> Tensor:
    """‖ε̂ - ε‖² / (c·h·w), or of v or z_0, one value a sample (B,) (2006.11239, eq. 14)."""
    return (output - target).square().flatten(1).mean(dim=1)


def min_snr_weight(alpha_bar: Tensor, prediction: Prediction, gamma: float) -> Tensor:
    """Weight of each sample's diffusion loss that keeps easy noise levels from ruling, (B,).

    min(SNR_t, γ) on the error of ẑ_0, with SNR_t = ᾱ_t / (1 - ᾱ_t). An error of ε is SNR_t times
    that of z_0 and one of v SNR_t + 1 times, so these are divided out (arXiv 2303.09556,
    section 3.4).

    Args:
        alpha_bar: ᾱ_t (B,).
        prediction: What the network predicts.
        gamma: γ; the source takes 5.
    """
    snr = alpha_bar / (1 - alpha_bar)
    clipped = snr.clamp(max=gamma)
    if prediction == "epsilon":
        return clipped / snr
    return clipped / (snr + 1) if prediction == "velocity" else clipped


def classification_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Cross-entropy of one sample, (B,): binary over the known findings, or categorical.

    Args:
        logits: (B, C).
        targets: (B, C) in {0, 1}, NaN where a label is missing; one-hot if not `multi_label`.
        multi_label: Findings are independent (ChestX-ray14), not exclusive (ISIC).

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
