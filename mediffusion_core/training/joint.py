"""One site's round of the joint stage: one network learns to denoise and to classify."""

import torch

from mediffusion_core.common.device import autocast
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import JointTraining
from mediffusion_core.training.auxiliary import Auxiliary
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.joint_batches import JointBatches
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_report import LocalReport
from mediffusion_core.training.local_round import LocalRound
from mediffusion_core.training.loss import joint_losses, total_loss
from mediffusion_core.training.schedule import local_steps
from mediffusion_core.training.semi_supervised.consistency import Consistency


def train_joint(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    data: LatentSet,
    settings: JointTraining,
    process: DiffusionProcess,
    current: LocalRound,
    auxiliary: Auxiliary | None = None,
) -> LocalReport:
    """Trains the joint UNet in place on a site's latents, with the loss of `joint_losses`.

    Args:
        model: Trained in place, on the device it stands on.
        optimizer: Of `joint_optimizer`; it continues from its moments.
        data: The site's latents and labels.
        settings: Steps, batches, rates and weights.
        process: The noise process, on any device.
        current: The round, whose seed draws batches, views, timesteps, noise and dropout.
        auxiliary: What some settings need beside the weights.
    """
    report = LocalReport()
    if not len(data.latents):
        return report
    auxiliary = auxiliary or Auxiliary()
    device = next(model.parameters()).device
    torch.manual_seed(current.seed)
    with autocast(current.precision, device):
        batches = _batches(model, data, settings, process.to(device), current.seed, auxiliary)
    if not batches:
        return report
    proximal = Proximal(model, settings.proximal_weight)
    steps = local_steps(
        len(data.latents), settings.local_epochs, settings.batch_size, current.number
    )
    report.images_seen, report.labelled_seen = batches.seen(steps)
    model.train()
    for step in current.steps(optimizer, settings.warmup_steps, steps):
        with autocast(current.precision, device):
            batch = batches.next()
            losses = joint_losses(model, batch, settings)
        loss = total_loss(losses, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for control in auxiliary.controls:
            control.correct_gradients()
        proximal.add_gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        figures = {name: float(value.detach()) for name, value in losses.items()}
        report.add(loss=float(loss.detach()), **figures, **batch.figures())
        current.on_step(step, steps, float(loss.detach()))
    return report


def _batches(
    model: JointUNet,
    data: LatentSet,
    settings: JointTraining,
    process: DiffusionProcess,
    seed: int,
    auxiliary: Auxiliary,
) -> JointBatches:
    """The round's batches, with pseudo-labels and adjusted logits as the settings say."""
    generator = torch.Generator().manual_seed(seed)
    counts, shift, consistency = auxiliary.label_counts, None, None
    if counts:
        shift = settings.logit_adjustment * counts.log_prior(data.multi_label)
    if settings.consistency.weight and settings.classification_weight and len(data.unlabelled):
        teacher = auxiliary.teacher or model
        consistency = Consistency(data, settings.consistency, teacher, counts, shift, generator)
    return JointBatches(data, settings, process, generator, consistency, shift)


def joint_optimizer(model: JointUNet, settings: JointTraining) -> torch.optim.AdamW:
    """AdamW over UNet and head, each at its own learning rate."""
    return torch.optim.AdamW(
        [
            {"params": model.unet.parameters(), "base": settings.learning_rate},
            {"params": model.head.parameters(), "base": settings.head_learning_rate},
        ],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
