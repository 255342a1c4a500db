"""One site's round of the joint stage: one network learns to denoise and to classify."""

import torch
from torch import Tensor

from mediffusion_core.model import JointUNet
from mediffusion_core.settings import JointTraining, Prediction
from mediffusion_core.training.batches import Batches, Shuffled, Weighted, rarity
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local import (
    LocalReport,
    Progress,
    Proximal,
    autocast,
    cosine,
    local_steps,
)
from mediffusion_core.training.moments import steps_behind
from mediffusion_core.training.objective import JointObjective


def train_joint(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    data: LatentSet,
    settings: JointTraining,
    alphas_cumprod: Tensor,
    *,
    prediction: Prediction,
    precision: str,
    done: float,
    share: float,
    seed: int,
    on_step: Progress,
    label_counts: LabelCounts | None = None,
) -> LocalReport:
    """Trains the joint UNet in place on a site's latents.

    A part of the loss whose weight is 0 is not computed, and what it alone would use is not seen:
    without the diffusion loss a site without labels has nothing to train on.

    Args:
        model: Trained in place, on the device it stands on.
        optimizer: Of `joint_optimizer`; its moments, fresh or of earlier rounds, are continued.
        data: The site's latents and labels.
        settings: Steps, batches, rates and weights.
        alphas_cumprod: ᾱ (T,).
        prediction: What the network learns to predict.
        precision: "auto", "fp32" or "bf16".
        done: Fraction of the stage's rounds already run; drives the learning rate and λ.
        share: Fraction of the stage that this round is.
        seed: Draws batches, views, timesteps, noise and dropout.
        on_step: Told after each step.
        label_counts: Of all sites, where the settings need them.
    """
    report = LocalReport()
    count = len(data.latents)
    if not count:
        return report
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    log_prior = label_counts.log_prior(data.multi_label) if label_counts else None
    objective = JointObjective(settings, alphas_cumprod, prediction, generator, log_prior)
    everyone = Shuffled(torch.arange(count), generator)
    known = len(data.labelled) if settings.classification_weight else 0
    if not known and not settings.diffusion_weight:
        return report
    labelled = _labelled_batches(data, settings, generator) if known else None
    proximal = Proximal(model, settings.proximal_weight)
    behind = steps_behind(optimizer)
    steps = local_steps(count, settings.local_epochs, settings.batch_size)
    # Distinct images: three labels seen a hundred times weigh as three, not as three hundred.
    report.labelled_seen = min(known, steps * settings.labelled_batch_size)
    if not settings.diffusion_weight:
        report.images_seen = report.labelled_seen
    model.train()
    for step in range(steps):
        progress = done + share * step / steps
        _set_rate(optimizer, settings, behind + step, progress)
        losses = {}
        with autocast(precision, device):
            if settings.diffusion_weight:
                latents = data.latents[everyone.next(settings.batch_size)].float().to(device)
                losses["diffusion_loss"] = objective.diffusion(model, latents)
                report.images_seen += len(latents)
            if labelled is not None:
                chosen = labelled.next(settings.labelled_batch_size)
                views, targets = data.labelled_views(chosen, generator)
                losses["classification_loss"] = objective.classification(
                    model, views.to(device), targets.to(device), data.multi_label
                )
        loss = objective.total(losses, progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        proximal.add_gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        values = {name: float(value.detach()) for name, value in losses.items()}
        report.add(loss=float(loss.detach()), **values)
        on_step(step + 1, steps, float(loss.detach()))
    return report


def _labelled_batches(
    data: LatentSet, settings: JointTraining, generator: torch.Generator
) -> Batches:
    """Numbers of labelled images: in passes over all of them, or rare classes more often."""
    if settings.class_balance == "none":
        return Shuffled(torch.arange(len(data.labelled)), generator)
    power = 0.5 if settings.class_balance == "sqrt" else 1.0
    return Weighted(rarity(data.targets[data.labelled], power), generator)


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


def _set_rate(
    optimizer: torch.optim.AdamW, settings: JointTraining, step: float, progress: float
) -> None:
    """Cosine over the stage's rounds, after a rise over the optimizer's first steps."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = cosine(group["base"], progress) * warm
