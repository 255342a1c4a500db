"""One site's private round of the autoencoder stage."""

import torch
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.models import Autoencoder
from mediffusion_core.privacy.dp_sgd.autoencoder_rows import ImageRows, draw_rows, unit_losses
from mediffusion_core.privacy.dp_sgd.gradient_check import SYNTHETIC_UNITS, check_on_synthetic
from mediffusion_core.privacy.dp_sgd.private_round import PrivateRound
from mediffusion_core.settings import AutoencoderTraining


def train_private_autoencoder(
    autoencoder: Autoencoder,
    optimizer: torch.optim.AdamW,
    images: ImageSet,
    settings: AutoencoderTraining,
    latent_shape: tuple[int, int, int],
    private_round: PrivateRound,
) -> None:
    """Trains the autoencoder in place by DP-SGD, with the loss of `train_autoencoder`.

    Args:
        autoencoder: Trained in place, in fp32, on its device.
        optimizer: Of `autoencoder_optimizer`. Its moments are of noised gradients alone.
        images: The site's training images.
        settings: Learning rate and loss weights. Its batch size applies without privacy only.
        latent_shape: (c, h, w).
        private_round: Units, mechanism and steps.

    Raises:
        WrongGradientError: before the first step, if per-sample gradients are wrong.
    """
    device = next(autoencoder.parameters()).device
    index, streams = private_round.index, private_round.streams()
    multiplicity = private_round.privacy.noise_multiplicity
    _, height, width, channels = images.pixels.shape
    autoencoder.train()

    def losses(rows: ImageRows) -> Tensor:
        return unit_losses(autoencoder, settings, rows)

    def draw(step: int, units: Tensor) -> ImageRows:
        rows = draw_rows(images, index, units, multiplicity, latent_shape, streams, step)
        return rows.to(device)

    def synthetic(seed: int) -> ImageRows:
        image_shape = (channels, height, width)
        return _synthetic(image_shape, latent_shape, multiplicity, seed).to(device)

    with private_round.gradients(autoencoder, losses) as gradients:
        check_on_synthetic(gradients, synthetic)
        private_round.train(gradients, draw, optimizer, settings)


def _synthetic(
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
    multiplicity: int,
    seed: int,
) -> ImageRows:
    """Random images of synthetic units, `multiplicity` of each unit."""
    generator = torch.Generator().manual_seed(seed)
    count = SYNTHETIC_UNITS
    drawn = [torch.rand(count, *image_shape, generator=generator) for _ in range(multiplicity)]
    noise = [torch.randn(count, *latent_shape, generator=generator) for _ in drawn]
    return ImageRows(tuple(drawn), tuple(noise))
