"""What a site tells besides weights, each with noise: its counts, and sums over its latents.

Every release is one call of the Gaussian mechanism on all units, `Charge(1, release_noise, 1)`.
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
    """How many units train at a site, and how many of them have a label, both with noise."""

    units: int
    labelled: int
    deviation: float
    """Standard deviation of the noise of each."""


def noised_counts(units: int, labelled: int, noise_multiplier: float) -> NoisedCounts:
    """Both counts with Gaussian noise; one unit moves them by at most √2 together.

    Never below one unit, and never more labelled units than units.
    """
    deviation = 2**0.5 * noise_multiplier
    noise = (deviation * normal(torch.Size([2]))).tolist()
    count = max(1, round(units + noise[0]))
    return NoisedCounts(count, min(count, max(0, round(labelled + noise[1]))), deviation)


def latent_bound(channels: int) -> float:
    """The length to which a unit's means and mean squares are cut, 2 √c."""
    return 2 * math.sqrt(channels)


@torch.no_grad()
def noised_latent_sums(
    autoencoder: Autoencoder,
    images: ImageSet,
    index: UnitIndex,
    counted: int,
    noise_multiplier: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Sums over units of the means and mean squares of their latents, with Gaussian noise.

    Of each unit one image counts. Its vector of c means and c mean squares is cut to
    `latent_bound`, twice the length of that of latents with mean 0 and variance 1.

    Args:
        autoencoder: In evaluation mode, on its device.
        images: The site's training images.
        index: Which are of which unit.
        counted: The noised count of units, which stands in the place of the true one.
        noise_multiplier: The noise's standard deviation over the bound.
        generator: Draws each unit's image.

    Returns:
        `total` (c,), `squares` (c,) and `count` (1,), as the latent census sends them.
    """
    device = next(autoencoder.parameters()).device
    chosen = index.draw(torch.arange(len(index.counts)), generator)
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
    means, squares = total.split(channels)
    return {"total": means, "squares": squares, "count": torch.tensor([float(counted)])}
