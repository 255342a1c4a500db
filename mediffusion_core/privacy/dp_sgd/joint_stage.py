"""One site's private round of the joint stage."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import JointUNet
from mediffusion_core.privacy.dp_sgd.adapters import adapted
from mediffusion_core.privacy.dp_sgd.gradient_check import SYNTHETIC_UNITS, check_on_synthetic
from mediffusion_core.privacy.dp_sgd.joint_rows import UnitLosses, UnitRows
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import PerSampleGradients
from mediffusion_core.privacy.dp_sgd.private_round import PrivateRound
from mediffusion_core.privacy.unit_streams import UnitStreams
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import JointTraining
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.latent_set import LatentSet

DECODER = ("unet.up_blocks.", "unet.conv_norm_out.", "unet.conv_out.")
"""Parameters that only the diffusion loss trains."""


def train_private_joint(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    data: LatentSet,
    settings: JointTraining,
    process: DiffusionProcess,
    private_round: PrivateRound,
) -> None:
    """Trains the joint UNet in place by DP-SGD on a site's labelled and unlabelled latents.

    Args:
        model: Trained in place, in fp32, on its device; inside `training_parts`.
        optimizer: Of `joint_optimizer`. Its moments are of noised gradients alone.
        data: The site's latents and labels.
        settings: Learning rate and loss weights. Its batch sizes apply without privacy only.
        process: The noise process, on any device.
        private_round: Units, mechanism and steps.

    Raises:
        WrongGradientError: before the first step, if per-sample gradients are wrong.
    """
    with _clipped(model, data, settings, process, private_round) as (gradients, draw):
        private_round.train(gradients, draw, optimizer, settings, settings.proximal_weight)


def private_joint_sums(
    model: JointUNet,
    data: LatentSet,
    settings: JointTraining,
    process: DiffusionProcess,
    private_round: PrivateRound,
) -> dict[str, Tensor]:
    """Sums of the clipped gradients of all of a site's units, by parameter and without noise.

    The caller adds noise before they leave. Arguments and errors as of `train_private_joint`.
    """
    with _clipped(model, data, settings, process, private_round) as (gradients, draw):
        sums = private_round.sums(gradients, draw)
    private_round.current.on_step(1, 1, float("nan"))
    return sums


@contextmanager
def _clipped(
    model: JointUNet,
    data: LatentSet,
    settings: JointTraining,
    process: DiffusionProcess,
    private_round: PrivateRound,
) -> Iterator[tuple[PerSampleGradients[Any], Callable[[int, Tensor], Any]]]:
    """Checked clipped gradients of the network, and a function that draws the rows of a step."""
    device = next(model.parameters()).device
    privacy = private_round.privacy
    ghost = privacy.grad_sample_mode == "ghost"
    torch.manual_seed(private_round.current.seed)  # dropout
    model.train()
    # The diffusion loss does not reach the classifier.
    diffusing = 0.0 if privacy.trained == "head" else settings.diffusion_weight
    weights = (diffusing, settings.classification_weight)
    losses = UnitLosses(model, weights, data.multi_label)

    def drawing(
        latents: LatentSet, index: UnitIndex, streams: UnitStreams
    ) -> Callable[[int, Tensor], Any]:
        rows = UnitRows(latents, index, settings, process.to(device), streams)
        if ghost:
            return rows.single
        return lambda step, units: rows.joint(step, units, privacy.noise_multiplicity, weights)

    def synthetic(seed: int) -> Any:
        units = torch.arange(SYNTHETIC_UNITS)
        index = UnitIndex(units, [str(number) for number in range(SYNTHETIC_UNITS)])
        streams = UnitStreams(index.names, str(seed).encode())
        return drawing(_synthetic(data, seed), index, streams)(1, units)

    draw = drawing(data, private_round.index, private_round.streams())
    called: Callable[[Any], Tensor] = losses.single if ghost else losses.joint
    with private_round.gradients(model, called) as gradients:
        check_on_synthetic(gradients, synthetic)
        yield gradients, draw


def training_parts(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    settings: JointTraining,
    privacy: PrivacySettings,
) -> AbstractContextManager[None]:
    """Freezes all parameters but those that the settings train.

    With `privacy.trained=adapters` the context adds adapters, and merges them at its end.
    """
    freeze(model, settings, privacy)
    if privacy.trained != "adapters":
        return nullcontext()
    unreached = () if settings.diffusion_weight > 0 else DECODER
    return adapted(
        model, optimizer, privacy.adapter_rank, settings.learning_rate, ("head.", *unreached)
    )


def freeze(model: JointUNet, settings: JointTraining, privacy: PrivacySettings) -> None:
    """Freezes parameters that the settings or the losses leave out: they would only gain noise."""
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


def _synthetic(data: LatentSet, seed: int) -> LatentSet:
    """Random latents of synthetic units in the shape of the site's; all but one have a label."""
    generator = torch.Generator().manual_seed(seed)
    count = SYNTHETIC_UNITS
    drawn = torch.randn(count, *data.latents.shape[1:], generator=generator).half()
    targets = torch.full((count, data.targets.shape[1]), torch.nan)
    targets[:-1] = 0.0
    targets[:-1, 0] = 1.0
    return LatentSet(drawn, drawn[None, :-1], targets, data.multi_label)
