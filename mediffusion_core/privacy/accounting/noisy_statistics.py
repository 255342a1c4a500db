"""Noisy statistics beside the weights: a site's counts, and sums over its latents.

Each is one call of the Gaussian mechanism on all units, `Charge(1, release_noise, 1)`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.models import Autoencoder
from mediffusion_core.privacy.dp_sgd.randomness import normal
from mediffusion_core.privacy.units import UnitIndex

BATCH = 128


@dataclass(frozen=True)
class NoisedCounts:
    """A site's numbers of training units and of labelled training units, with noise."""

    units: int
    labelled: int
    deviation: float
    """Standard deviation of the noise of each count."""


def noised_counts(units: int, labelled: int, noise_multiplier: float) -> NoisedCounts:
    """Adds Gaussian noise to both counts; one unit changes the pair by at most √2 in norm.

    The result has at least one unit, and at most as many labelled units as units.
    """
    deviation = 2**0.5 * noise_multiplier
    noise = (deviation * normal(torch.Size([2]))).tolist()
    count = max(1, round(units + noise[0]))
    return NoisedCounts(count, min(count, max(0, round(labelled + noise[1]))), deviation)


def latent_bound(channels: int) -> float:
    """Largest norm of a unit's vector of means and mean squares, 2 √c."""
    return 2 * math.sqrt(channels)


@torch.no_grad()
def noised_latent_sums(
    autoencoder: Autoencoder,
    images: ImageSet,
    index: UnitIndex,
    counted: int,
    noise_multiplier: float,
) -> dict[str, Tensor]:
    """Sums over units of the means and mean squares of their latents, with Gaussian noise.

    One image of each unit counts. Its vector of c means and c mean squares is clipped to
    `latent_bound`: twice the norm for latents with mean 0 and variance 1.

    Args:
        autoencoder: In evaluation mode, on its device.
        images: The site's training images.
        index: The unit of each image.
        counted: The noised count of units, returned in place of the true count.
        noise_multiplier: Standard deviation of the noise over the bound.

    Returns:
        `total` (c,), `squares` (c,) and `count` (1,), the fields of the latent census.
    """
    device = next(autoencoder.parameters()).device
    chosen = index.draw_each()
    channels = autoencoder.kl.config["latent_channels"]
    bound = latent_bound(channels)
    total = torch.zeros(2 * channels, dtype=torch.float64)
    for part in chosen.split(BATCH) if len(chosen) else ():
        latents = autoencoder.encode(images.take(part).to(device)).mode().double()  # (B, c, h, w)
        vectors = torch.cat([latents.mean(dim=(2, 3)), latents.square().mean(dim=(2, 3))], dim=1)
        vectors = vectors.nan_to_num(0.0, 0.0, 0.0)  # (B, 2c)
        lengths = vectors.norm(dim=1, keepdim=True).clamp(min=1e-30)
        total += (vectors * (bound / lengths).clamp(max=1.0)).sum(dim=0).cpu()
    total += noise_multiplier * bound * normal(total.shape)
    # Rounded, since the pattern of the noise's last bits may tell the sum (`randomness.normal`).
    means, squares = total.float().double().split(channels)
    return {"total": means, "squares": squares, "count": torch.tensor([float(counted)])}
