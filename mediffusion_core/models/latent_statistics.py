"""Colour, contrast and texture of a latent: a few fixed features."""

import torch
from torch import Tensor

PER_CHANNEL = 5
FLOOR = 0.01
"""Added to deviations, which are about 1, so that the logarithm and its slope stay finite."""


def latent_statistics(latents: Tensor) -> Tensor:
    """Means, log deviations and log gradients of each channel of scaled latents.

    With x a channel, X its positions, C the middle quarter of them and X' the pairs of neighbours:

        mean_X x    mean_C x    log std_X x    log std_C x    log mean_{X'} |x_p - x_q|

    They are invariant under turns and mirrors. They are fixed, since the noise of private training
    grows with the number of trained weights (arXiv 2011.11660).

    Args:
        latents: (B, c, h, w), h and w at least 2.

    Returns:
        (B, 5 c), in the order above.
    """
    latents = latents.float()
    height, width = latents.shape[2:]
    middle = latents[:, :, height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
    neighbours = torch.cat(
        [latents.diff(dim=dim).abs().flatten(2) for dim in (2, 3)], dim=2
    )  # (B, c, pairs)
    return torch.cat(
        [
            latents.mean(dim=(2, 3)),
            middle.mean(dim=(2, 3)),
            _log_deviation(latents),
            _log_deviation(middle),
            (neighbours.mean(dim=2) + FLOOR).log(),
        ],
        dim=1,
    )


def _log_deviation(latents: Tensor) -> Tensor:
    variance = latents.var(dim=(2, 3), correction=0)
    return (variance + FLOOR**2).log() / 2
