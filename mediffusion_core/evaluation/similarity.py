"""How close two images are, pixel by pixel and by structure.

torchmetrics takes 3 seconds to import, so the functions that need it import it.
"""

import torch
from torch import Tensor

_WINDOW = 11
"""Side in pixels of the Gaussian window with σ = 1.5."""


def mean_absolute(first: Tensor, second: Tensor) -> Tensor:
    """L1: mean |x - y| over pixels and channels, (B,), of images (B, C, H, W)."""
    return (first - second).abs().mean(dim=(1, 2, 3))


def root_mean_square(first: Tensor, second: Tensor) -> Tensor:
    """L2: √ mean (x - y)² over pixels and channels, (B,), of images (B, C, H, W)."""
    return (first - second).square().mean(dim=(1, 2, 3)).sqrt()


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, by torchmetrics.

    Args:
        images: (B, C, H, W) in [0, 1].
        reference: (B, C, H, W) in [0, 1].

    Returns:
        (B,) in dB; inf where an image equals its reference.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(
        images, reference, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM over pixels and channels (Wang et al. 2004, eq. 13), by torchmetrics.

    The mean of (2 μ_x μ_y + c_1)(2 σ_xy + c_2) / ((μ_x² + μ_y² + c_1)(σ_x² + σ_y² + c_2)) in a
    Gaussian window of 11 pixels with σ = 1.5, c_1 = 0.01² and c_2 = 0.03². Only windows within the
    image count, as in the paper; torchmetrics' mean includes windows over mirrored margins.

    Args:
        first: (B, C, H, W) in [0, 1], H and W at least 11.
        second: (B, C, H, W) in [0, 1].

    Returns:
        (B,), 1 for equal images.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, at_pixels = structural_similarity_index_measure(
        first,
        second,
        sigma=1.5,
        kernel_size=_WINDOW,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )  # (B, C, H, W)
    margin = _WINDOW // 2
    inside: Tensor = at_pixels[..., margin:-margin, margin:-margin]
    return inside.mean(dim=(1, 2, 3))


def feature_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of features (B, D) and (B, D), (B,): S³ (arXiv 2303.09962) with SimSiam's features."""
    return torch.cosine_similarity(first, second, dim=1)
