"""One site's private round of the joint stage."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import JointUNet
from mediffusion_core.privacy.dp_sgd.adapters import adapted
from mediffusion_core.privacy.dp_sgd.gradient_check import check_gradients
from mediffusion_core.privacy.dp_sgd.joint_rows import UnitLosses, UnitRows
from mediffusion_core.privacy.dp_sgd.noise import Mechanism, private_gradients
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import UnitGradients
from mediffusion_core.privacy.dp_sgd.randomness import secret_seed
from mediffusion_core.settings import JointTraining
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_report import Progress
from mediffusion_core.training.loss import risen
from mediffusion_core.training.schedule import set_rate

DECODER = ("unet.up_blocks.", "unet.conv_norm_out.", "unet.conv_out.")
"""What the diffusion loss alone reaches."""


def train_private_joint(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    data: LatentSet,
    unit_of: Tensor,
    num_units: int,
    settings: JointTraining,
    privacy: PrivacySettings,
    mechanism: Mechanism,
    process: DiffusionProcess,
    *,
    steps: int,
    round_number: int,
    rounds: int,
    on_step: Progress,
) -> None:
    """Trains the joint UNet in place by DP-SGD on a site's latents, labelled and not in one stream.

    Args:
        model: Trained in place, in fp32, on the device it stands on; inside `training_parts`.
        optimizer: Of `joint_optimizer`; its moments are of noised gradients alone.
        data: The site's latents and labels.
        unit_of: The unit of each of its images, (n,).
        num_units: How many units there are.
        settings: Rates and weights; its batch sizes are the plain stage's.
        privacy: How units are clipped.
        mechanism: How they are drawn and noised.
        process: The noise process, on any device.
        steps: Of this round.
        round_number: Of the stage, from 1; with `rounds` it drives learning rate and λ.
        rounds: How many the stage has.
        on_step: Told after each step; it learns no loss.

    Raises:
        WrongGradientError: before the first step, if gradients of single units are wrong.
    """
    device = next(model.parameters()).device
    torch.manual_seed(secret_seed())  # dropout
    proximal = Proximal(model, settings.proximal_weight)
    behind = steps_behind(optimizer)
    model.train()
    losses = UnitLosses(model, settings, data.multi_label)
    ghost = privacy.grad_sample_mode == "ghost"

    def rows_of(latents: LatentSet, units: Tensor, count: int, seed: int) -> UnitRows:
        generator = torch.Generator().manual_seed(seed)
        return UnitRows(latents, units, count, settings, process.to(device), generator)

    def drawing(rows: UnitRows) -> Callable[[Tensor], Any]:
        if ghost:
            return rows.single
        return lambda units: rows.joint(units, privacy.noise_multiplicity, losses.weights)

    called: Callable[[Any], Tensor] = losses.single if ghost else losses.joint
    three = torch.arange(3)
    made_up = (drawing(rows_of(_made_up(data, seed), three, 3, seed))(three) for seed in range(3))
    draw = drawing(rows_of(data, unit_of, num_units, secret_seed()))
    with UnitGradients(
        model, called, privacy.grad_sample_mode, privacy.clipping, privacy.max_grad_norm
    ) as gradients:
        check_gradients(gradients, next(made_up), made_up)
        for step in range(steps):
            progress = (round_number - 1 + step / steps) / rounds
            set_rate(optimizer, settings.warmup_steps, behind + step, progress)
            losses.weights = _weights(settings, privacy, progress)
            private_gradients(gradients, draw, mechanism, num_units)
            proximal.add_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step(step + 1, steps, float("nan"))


def training_parts(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    settings: JointTraining,
    privacy: PrivacySettings,
) -> AbstractContextManager[None]:
    """Leaves trainable what the settings name; while the context lasts, adapters among it."""
    _freeze(model, settings, privacy)
    if privacy.trained != "adapters":
        return nullcontext()
    unreached = () if settings.diffusion_weight > 0 else DECODER
    return adapted(
        model, optimizer, privacy.adapter_rank, settings.learning_rate, ("head.", *unreached)
    )


def _freeze(model: JointUNet, settings: JointTraining, privacy: PrivacySettings) -> None:
    """Leaves trainable what the settings name and a loss reaches; the rest would get but noise."""
    for name, parameter in model.named_parameters():
        if name.startswith("head."):
            trained = settings.classification_weight > 0
        elif name.startswith(DECODER):
            trained = settings.diffusion_weight > 0 and _is_trained(name, privacy)
        else:
            trained = _is_trained(name, privacy)
        parameter.requires_grad_(trained)


def _is_trained(name: str, privacy: PrivacySettings) -> bool:
    return privacy.trained == "all" or (privacy.trained == "attention" and ".attentions." in name)


def _weights(
    settings: JointTraining, privacy: PrivacySettings, progress: float
) -> tuple[float, float]:
    classifying = settings.classification_weight * risen(progress, settings.classification_warmup)
    # The diffusion loss does not reach the classifier.
    diffusing = 0.0 if privacy.trained == "head" else settings.diffusion_weight
    return diffusing, classifying


def _made_up(data: LatentSet, seed: int) -> LatentSet:
    """Latents of three units that do not exist, two of them with labels, for the check."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, *data.latents.shape[1:], generator=generator).half()
    targets = torch.full((3, data.targets.shape[1]), torch.nan)
    targets[:2] = 0.0
    targets[:2, 0] = 1.0
    return LatentSet(drawn, drawn[None, :2], targets, data.multi_label)
