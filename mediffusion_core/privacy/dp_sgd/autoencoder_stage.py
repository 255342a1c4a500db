"""One site's private round of the autoencoder stage."""

import torch
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.models import Autoencoder
from mediffusion_core.privacy.dp_sgd.autoencoder_rows import ImageRows, draw_rows, unit_losses
from mediffusion_core.privacy.dp_sgd.gradient_check import check_gradients
from mediffusion_core.privacy.dp_sgd.noise import Mechanism, private_gradients
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import UnitGradients
from mediffusion_core.privacy.dp_sgd.randomness import secret_seed
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import AutoencoderTraining
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.local_report import Progress
from mediffusion_core.training.schedule import set_rate


def train_private_autoencoder(
    autoencoder: Autoencoder,
    optimizer: torch.optim.AdamW,
    images: ImageSet,
    index: UnitIndex,
    settings: AutoencoderTraining,
    privacy: PrivacySettings,
    mechanism: Mechanism,
    *,
    latent_shape: tuple[int, int, int],
    steps: int,
    round_number: int,
    rounds: int,
    on_step: Progress,
) -> None:
    """Trains the autoencoder in place by DP-SGD, with the loss of `train_autoencoder`.

    Args:
        autoencoder: Trained in place, in fp32, on the device it stands on.
        optimizer: Of `autoencoder_optimizer`; its moments are of noised gradients alone.
        images: The site's training images.
        index: Which are of which unit.
        settings: Rates and weights; its batch size is the plain stage's.
        privacy: How units are clipped.
        mechanism: How they are drawn and noised.
        latent_shape: (c, h, w).
        steps: Of this round.
        round_number: Of the stage, from 1; with `rounds` it drives the learning rate.
        rounds: How many the stage has.
        on_step: Told after each step; it learns no loss.

    Raises:
        WrongGradientError: before the first step, if gradients of single units are wrong.
    """
    device = next(autoencoder.parameters()).device
    generator = torch.Generator().manual_seed(secret_seed())
    proximal = Proximal(autoencoder, settings.proximal_weight)
    behind = steps_behind(optimizer)
    autoencoder.train()

    def losses(rows: ImageRows) -> Tensor:
        return unit_losses(autoencoder, settings, rows)

    def draw(units: Tensor) -> ImageRows:
        count = privacy.noise_multiplicity
        return draw_rows(images, index, units, count, latent_shape, device, generator)

    with UnitGradients(
        autoencoder, losses, privacy.grad_sample_mode, privacy.clipping, privacy.max_grad_norm
    ) as gradients:
        _, height, width, channels = images.pixels.shape
        shape = (channels, height, width)
        count = privacy.noise_multiplicity
        made_up = (_made_up(shape, latent_shape, count, device, seed) for seed in range(3))
        check_gradients(gradients, next(made_up), made_up)
        for step in range(steps):
            progress = (round_number - 1 + step / steps) / rounds
            set_rate(optimizer, settings.warmup_steps, behind + step, progress)
            private_gradients(gradients, draw, mechanism, len(index.counts))
            proximal.add_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step(step + 1, steps, float("nan"))


def _made_up(
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
    count: int,
    device: torch.device,
    seed: int,
) -> ImageRows:
    """`count` rows each of three units that do not exist, as the check needs them."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(3, *image_shape, generator=generator).to(device) for _ in range(count)]
    noise = [torch.randn(3, *latent_shape, generator=generator).to(device) for _ in drawn]
    return ImageRows(tuple(drawn), tuple(noise))
