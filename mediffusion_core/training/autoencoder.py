"""One site's round of the autoencoder stage."""

import torch

from mediffusion_core.common.device import autocast
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.losses import reconstruction_loss
from mediffusion_core.models import Autoencoder
from mediffusion_core.settings import AutoencoderTraining
from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.local_report import LocalReport, Progress
from mediffusion_core.training.schedule import local_steps, set_rate


def train_autoencoder(
    autoencoder: Autoencoder,
    optimizer: torch.optim.AdamW,
    images: ImageSet,
    settings: AutoencoderTraining,
    *,
    precision: str,
    round_number: int,
    rounds: int,
    seed: int,
    on_step: Progress,
) -> LocalReport:
    """Trains the autoencoder in place on all of a site's images, labelled or not.

    Loss: mean absolute error of pixels and edges, plus `kl_weight` · KL(q(z|x) ‖ N(0, 1)) / CHW:
    that of arXiv 2112.10752, section 3.1, both its sums divided by the number of pixel values.

    Args:
        autoencoder: Trained in place, on the device it stands on.
        optimizer: Of `autoencoder_optimizer`; its moments, fresh or of earlier rounds, are
            continued.
        images: The site's training images.
        settings: Steps, batch and rates.
        precision: "auto", "fp32" or "bf16".
        round_number: Of the stage, from 1; with `rounds` it drives steps and learning rate.
        rounds: How many the stage has.
        seed: Draws batches and posterior samples.
        on_step: Told after each step.
    """
    report = LocalReport()
    if not len(images):
        return report
    device = next(autoencoder.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    order = Shuffled(torch.arange(len(images)), generator)
    proximal = Proximal(autoencoder, settings.proximal_weight)
    behind = steps_behind(optimizer)
    steps = local_steps(len(images), settings.local_epochs, settings.batch_size, round_number)
    autoencoder.train()
    for step in range(steps):
        progress = (round_number - 1 + step / steps) / rounds
        set_rate(optimizer, settings.warmup_steps, behind + step, progress)
        batch = images.take(order.next(settings.batch_size)).to(device)  # (B, C, H, W)
        with autocast(precision, device):
            posterior = autoencoder.encode(batch)
            decoded = autoencoder.decode(posterior.sample())
        reconstructed = reconstruction_loss(decoded, batch, settings.edge_weight).mean()
        divergence = posterior.kl().float().mean() / batch[0].numel()
        loss = reconstructed + settings.kl_weight * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        proximal.add_gradients()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        report.images_seen += len(batch)
        report.add(loss=float(loss.detach()))
        on_step(step + 1, steps, float(loss.detach()))
    return report


def autoencoder_optimizer(
    autoencoder: Autoencoder, settings: AutoencoderTraining
) -> torch.optim.AdamW:
    """AdamW over all of the autoencoder."""
    group = {"params": autoencoder.parameters(), "base": settings.learning_rate}
    return torch.optim.AdamW([group], lr=settings.learning_rate, fused=True)
