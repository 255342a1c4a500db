"""The variational autoencoder between images and latents, on diffusers' `AutoencoderKL`."""

from typing import Self

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from mediffusion_core.models.dct_init import start_linear
from mediffusion_core.settings import AutoencoderSettings


class Autoencoder(nn.Module):
    """diffusers' `AutoencoderKL` between images in [0, 1] and unscaled latents.

    Patches of p·p pixels become channels on the way in, and pixels again on the way out (arXiv
    1609.05158), since most of a small network's time goes into its finest level. `kl` is diffusers'
    own network.
    """

    def __init__(self, settings: AutoencoderSettings, image_channels: int) -> None:
        """Builds it untrained.

        Args:
            settings: Patch size p and widths; each width after the first halves the resolution.
            image_channels: 1 for grey images, 3 for colour.
        """
        super().__init__()
        self.patch_size = settings.patch_size
        levels = len(settings.channels)
        self.kl = AutoencoderKL(
            in_channels=image_channels * settings.patch_size**2,
            out_channels=image_channels * settings.patch_size**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=settings.channels,
            layers_per_block=settings.layers_per_block,
            latent_channels=settings.latent_channels,
            norm_num_groups=settings.norm_groups,
            mid_block_add_attention=settings.attention,
            scaling_factor=1.0,
        )
        if settings.linear_start:
            start_linear(self.kl, image_channels, settings.patch_size)

    @classmethod
    def of(cls, kl: AutoencoderKL, patch_size: int) -> Self:
        """Wraps an existing network."""
        autoencoder = cls.__new__(cls)
        nn.Module.__init__(autoencoder)
        autoencoder.patch_size, autoencoder.kl = patch_size, kl
        return autoencoder

    def encode(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The posterior of the latents (B, c, h, w) of images (B, C, H, W)."""
        patches = F.pixel_unshuffle(images * 2 - 1, self.patch_size)  # (B, C p², H/p, W/p)
        posterior: DiagonalGaussianDistribution = self.kl.encode(patches).latent_dist
        return posterior

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), about [0, 1], of latents (B, c, h, w)."""
        patches = self.kl.decode(latents).sample  # (B, C p², H/p, W/p)
        return (F.pixel_shuffle(patches, self.patch_size).float() + 1) / 2


class LatentCodec(nn.Module):
    """A frozen autoencoder together with the global scale of its latents.

    The latents are shifted and divided per channel, so that over all sites' training images each
    channel has mean 0 and standard deviation 1 (arXiv 2112.10752, appendix G, per channel).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, autoencoder: Autoencoder, mean: Tensor, std: Tensor) -> None:
        """Takes the autoencoder and per-channel mean and standard deviation, both (C,)."""
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).float())
        self.register_buffer("std", std.reshape(1, -1, 1, 1).float())

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to scaled latents (B, c, h, w): the posterior's mode."""
        scaled: Tensor = (self.autoencoder.encode(images).mode() - self.mean) / self.std
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, c, h, w) to images (B, C, H, W) in [0, 1]."""
        return self.autoencoder.decode(latents * self.std + self.mean).clamp(0, 1)


def channel_sums(autoencoder: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sums over a batch from which the global latent scale is formed.

    Args:
        autoencoder: The trained autoencoder.
        images: (B, C, H, W) in [0, 1], B at least 1.

    Returns:
        Per-channel sum and sum of squares of the unscaled latents, float64 (c,), and how many
        values each sum holds.
    """
    latents = autoencoder.encode(images).mode().double()  # (B, c, h, w)
    count = latents.numel() // latents.shape[1]
    return latents.sum(dim=(0, 2, 3)), latents.square().sum(dim=(0, 2, 3)), count


def scale_from_sums(
    total: Tensor, squares: Tensor, count: float, uncertainty: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel from pooled sums.

    Args:
        total: Sums (c,).
        squares: Sums of squares (c,).
        count: Values in each.
        uncertainty: Standard deviation of the noise in `squares`. A variance below
            uncertainty / count cannot be told from 0, so it is raised to that.

    Returns:
        Mean (c,) and deviation (c,), at least 1e-3.
    """
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=max(1e-6, uncertainty / count))
    return mean.float(), variance.sqrt().float()


def untrained_codec(settings: AutoencoderSettings, image_channels: int) -> LatentCodec:
    """A codec with random weights and unit scale, into which a state can be loaded."""
    channels = settings.latent_channels
    return LatentCodec(
        Autoencoder(settings, image_channels), torch.zeros(channels), torch.ones(channels)
    )
