"""One site's round of the joint stage: one network learns to denoise and to classify."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mediffusion_core.common.device import autocast
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import JointTraining, Prediction
from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.batches import Batches, Shuffled, Weighted, rarity
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_report import LocalReport, Progress
from mediffusion_core.training.loss import JointObjective
from mediffusion_core.training.scaffold import ControlVariate
from mediffusion_core.training.schedule import local_steps, set_rate
from mediffusion_core.training.semi_supervised.consistency import Consistency


def train_joint(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    data: LatentSet,
    settings: JointTraining,
    alphas_cumprod: Tensor,
    *,
    prediction: Prediction,
    precision: str,
    round_number: int,
    rounds: int,
    seed: int,
    on_step: Progress,
    label_counts: LabelCounts | None = None,
    teacher: JointUNet | None = None,
    controls: Sequence[ControlVariate] = (),
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
        round_number: Of the stage, from 1; with `rounds` it drives steps, learning rate and λ.
        rounds: How many the stage has.
        seed: Draws batches, views, timesteps, noise and dropout.
        on_step: Told after each step.
        label_counts: Of all sites, where the settings need them.
        teacher: Gives the pseudo-labels of unlabelled images; without one the model itself does.
        controls: Of parts of the model, where its gradients are to be corrected by SCAFFOLD.
    """
    report = LocalReport()
    if not len(data.latents):
        return report
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    log_prior = label_counts.log_prior(data.multi_label) if label_counts else None
    objective = JointObjective(settings, alphas_cumprod, prediction, generator, log_prior)
    with autocast(precision, device):
        parts = _Parts(model, data, settings, objective, generator, teacher, label_counts)
    if not parts:
        return report
    proximal = Proximal(model, settings.proximal_weight)
    behind = steps_behind(optimizer)
    steps = local_steps(len(data.latents), settings.local_epochs, settings.batch_size, round_number)
    report.images_seen, report.labelled_seen = parts.seen(steps)
    model.train()
    for step in range(steps):
        progress = (round_number - 1 + step / steps) / rounds
        set_rate(optimizer, settings.warmup_steps, behind + step, progress)
        with autocast(precision, device):
            losses = parts.losses()
        loss = objective.total(losses, progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for control in controls:
            control.correct_gradients()
        proximal.add_gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        values = {name: float(value.detach()) for name, value in losses.items()}
        report.add(loss=float(loss.detach()), **values)
        on_step(step + 1, steps, float(loss.detach()))
    return report


class _Parts:
    """The losses that a site can compute of what it holds, and the batches they are computed on."""

    def __init__(
        self,
        model: JointUNet,
        data: LatentSet,
        settings: JointTraining,
        objective: JointObjective,
        generator: torch.Generator,
        teacher: JointUNet | None,
        label_counts: LabelCounts | None,
    ) -> None:
        self._model = model
        self._data = data
        self._settings = settings
        self._objective = objective
        self._generator = generator
        self._device = next(model.parameters()).device
        everyone = Shuffled(torch.arange(len(data.latents)), generator)
        self._everyone = everyone if settings.diffusion_weight else None
        classifying = settings.classification_weight > 0
        known = classifying and len(data.labelled) > 0
        self._labelled = _labelled_batches(data, settings, generator) if known else None
        self._consistency = None
        if settings.consistency.weight and classifying and len(data.unlabelled):
            self._consistency = Consistency(
                data,
                settings.consistency,
                model if teacher is None else teacher,
                objective.adjusted,
                label_counts,
                generator,
            )

    def __bool__(self) -> bool:
        """Whether there is anything to train on."""
        parts = (self._everyone, self._labelled, self._consistency)
        return any(part is not None for part in parts)

    def seen(self, steps: int) -> tuple[int, int]:
        """How many images, and how many labelled ones, so many steps see.

        Labelled ones are distinct: three labels seen a hundred times weigh as three, not as three
        hundred. So are all where the denoiser does not see each image as often as any other.
        """
        settings = self._settings
        labelled = unlabelled = 0
        if self._labelled is not None:
            labelled = min(len(self._data.labelled), steps * settings.labelled_batch_size)
        if self._everyone is not None:
            return steps * settings.batch_size, labelled
        if self._consistency is not None:
            unlabelled = min(len(self._data.unlabelled), steps * settings.consistency.batch_size)
        return labelled + unlabelled, labelled

    def losses(self) -> dict[str, Tensor]:
        """The losses of one step, scalars, and what share of pseudo-labels was sure enough."""
        denoising = None
        if self._everyone is not None:
            chosen = self._everyone.next(self._settings.batch_size)
            latents = self._data.latents[chosen].float().to(self._device)
            denoising = self._objective.denoising(latents)
        rows = self._classified_rows()
        losses = self._objective.losses(self._model, denoising, rows, self._data.multi_label)
        if "consistency_loss" in rows:
            _, labels = rows["consistency_loss"]
            losses["pseudo_labelled"] = (~labels.isnan()).float().mean()
        return losses

    def _classified_rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        rows = {}
        if self._labelled is not None:
            chosen = self._labelled.next(self._settings.labelled_batch_size)
            rows["classification_loss"] = self._data.labelled_views(chosen, self._generator)
        if self._consistency is not None:
            rows["consistency_loss"] = self._consistency.next()
        return {
            name: (latents.to(self._device), targets.to(self._device))
            for name, (latents, targets) in rows.items()
        }


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
