"""How close two images are, pixel by pixel and by structure."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
LUMINANCE, CONTRAST = 0.01**2, 0.03**2
"""The source's (K_1 L)² and (K_2 L)², for images with a range L of 1."""


def mean_absolute(first: Tensor, second: Tensor) -> Tensor:
    """L1: mean |x - y| over pixels and channels, (B,), of images (B, C, H, W)."""
    return (first - second).abs().mean(dim=(1, 2, 3))


def root_mean_square(first: Tensor, second: Tensor) -> Tensor:
    """L2: √ mean (x - y)² over pixels and channels, (B,), of images (B, C, H, W)."""
    return (first - second).square().mean(dim=(1, 2, 3)).sqrt()


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM over pixels and channels (Wang et al. 2004, eq. 13).

    The mean of (2 μ_x μ_y + c_1)(2 σ_xy + c_2) / ((μ_x² + μ_y² + c_1)(σ_x² + σ_y² + c_2))
    in a Gaussian window of 11 pixels with σ = 1.5, where the window lies within the image.

    Args:
        first: (B, C, H, W) in [0, 1], H and W at least 11.
        second: (B, C, H, W) in [0, 1].

    Returns:
        (B,), 1 for equal images.
    """
    channels = first.shape[1]
    places = torch.arange(WINDOW, dtype=first.dtype, device=first.device) - WINDOW // 2
    row = torch.exp(-places.square() / (2 * SIGMA**2))
    kernel = (row[:, None] * row / row.sum().square()).expand(channels, 1, WINDOW, WINDOW)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=channels)  # (B, C, H - 10, W - 10)

    mean_x, mean_y = local_mean(first), local_mean(second)
    variances = local_mean(first**2) - mean_x**2 + local_mean(second**2) - mean_y**2
    covariance = local_mean(first * second) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + LUMINANCE) / (mean_x**2 + mean_y**2 + LUMINANCE)
    structure = (2 * covariance + CONTRAST) / (variances + CONTRAST)
    return (luminance * structure).mean(dim=(1, 2, 3))
