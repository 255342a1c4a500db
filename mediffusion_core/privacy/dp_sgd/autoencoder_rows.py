"""Rows and loss of each unit in a private step of the autoencoder stage."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.losses import reconstruction_loss
from mediffusion_core.models import Autoencoder
from mediffusion_core.privacy.unit_streams import UnitStreams
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import AutoencoderTraining


@dataclass(frozen=True)
class ImageRows:
    """K images of each unit, and the noise of their posterior samples."""

    images: tuple[Tensor, ...]
    """K of (n, C, H, W)."""
    noise: tuple[Tensor, ...]
    """K of (n, c, h, w)."""

    def __len__(self) -> int:
        """Number of units, n."""
        return len(self.images[0])

    def to(self, device: torch.device) -> Self:
        """The same rows on a device."""
        images = tuple(one.to(device) for one in self.images)
        return type(self)(images, tuple(one.to(device) for one in self.noise))

    def take(self, units: Tensor) -> Self:
        """The rows of some units, at the positions (m,)."""
        images = tuple(one[units.to(one.device)] for one in self.images)
        return type(self)(images, tuple(one[units.to(one.device)] for one in self.noise))


def draw_rows(
    images: ImageSet,
    index: UnitIndex,
    units: Tensor,
    multiplicity: int,
    latent_shape: tuple[int, int, int],
    streams: UnitStreams,
    step: int,
) -> ImageRows:
    """Draws K images of each unit (n,), with noise for their posterior samples, on the CPU.

    The rows of a unit depend on its own stream, images and the step alone.
    """
    draws = [streams.at(units, step, row) for row in range(multiplicity)]
    return ImageRows(
        tuple(images.take(index.draw(units, one)) for one in draws),
        tuple(one.normal(*latent_shape) for one in draws),
    )


def unit_losses(autoencoder: Autoencoder, settings: AutoencoderTraining, rows: ImageRows) -> Tensor:
    """The loss of `train_autoencoder` for each unit, the mean over its K images, (n,)."""
    losses = []
    for images, noise in zip(rows.images, rows.noise, strict=True):
        posterior = autoencoder.encode(images)
        decoded = autoencoder.decode(posterior.mean + posterior.std * noise)
        reconstructed = reconstruction_loss(decoded, images, settings.edge_weight)  # (n,)
        divergence = posterior.kl() / images[0].numel()  # (n,)
        losses.append(reconstructed + settings.kl_weight * divergence)
    return torch.stack(losses).mean(dim=0)
