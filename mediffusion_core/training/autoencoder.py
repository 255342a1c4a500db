"""One site's round of the autoencoder stage."""

import torch

from mediffusion_core.common.device import autocast
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.losses import reconstruction_loss
from mediffusion_core.models import Autoencoder
from mediffusion_core.settings import AutoencoderTraining
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.local_report import LocalReport
from mediffusion_core.training.local_round import LocalRound
from mediffusion_core.training.schedule import local_steps


def train_autoencoder(
    autoencoder: Autoencoder,
    optimizer: torch.optim.AdamW,
    images: ImageSet,
    settings: AutoencoderTraining,
    current: LocalRound,
) -> LocalReport:
    """Trains the autoencoder in place on all of a site's images, labelled or not.

    Loss: mean absolute error of pixels and edges + `kl_weight` · KL(q(z|x) ‖ N(0, 1)) / CHW, as in
    arXiv 2112.10752, section 3.1, with both sums divided by the number of pixel values.

    Args:
        autoencoder: Trained in place, on the device it stands on.
        optimizer: Of `autoencoder_optimizer`; it continues from its moments.
        images: The site's training images.
        settings: Steps, batch and rates.
        current: The round, whose seed draws batches and posterior samples.
    """
    report = LocalReport()
    if not len(images):
        return report
    device = next(autoencoder.parameters()).device
    generator = torch.Generator().manual_seed(current.seed)
    torch.manual_seed(current.seed)
    order = Shuffled(torch.arange(len(images)), generator)
    steps = local_steps(len(images), settings.local_epochs, settings.batch_size, current.number)
    autoencoder.train()
    for step in current.steps(optimizer, settings.warmup_steps, steps):
        batch = images.take(order.next(settings.batch_size)).to(device)  # (B, C, H, W)
        with autocast(current.precision, device):
            posterior = autoencoder.encode(batch)
            decoded = autoencoder.decode(posterior.sample())
        reconstructed = reconstruction_loss(decoded, batch, settings.edge_weight).mean()
        divergence = posterior.kl().float().mean() / batch[0].numel()
        loss = reconstructed + settings.kl_weight * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        report.images_seen += len(batch)
        report.add(loss=float(loss.detach()))
        current.on_step(step, steps, float(loss.detach()))
    return report


def autoencoder_optimizer(
    autoencoder: Autoencoder, settings: AutoencoderTraining
) -> torch.optim.AdamW:
    """AdamW over all of the autoencoder."""
    group = {"params": autoencoder.parameters(), "base": settings.learning_rate}
    return torch.optim.AdamW([group], lr=settings.learning_rate, fused=True)
