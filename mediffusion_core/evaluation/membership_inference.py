"""A membership-inference attack on a trained model, as a check of the ε that was promised.

Units of the training set tend to have smaller losses (arXiv 1709.01604, section 3.2); how far an
attack gets where few may be accused wrongly says most (arXiv 2112.03570). (ε, δ)-DP bounds it: the
rate of true accusations is at most e^ε times that of wrong ones, plus δ.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.losses import classification_loss, diffusion_loss
from mediffusion_core.inference.joint_model import TrainedModel

FALSE_POSITIVE_RATE = 0.01
NOISE_LEVELS = (0.05, 0.15, 0.3)
"""Fractions of the noise process at which an image's diffusion loss is averaged."""
BOOTSTRAPS = 1000
BATCH = 128

Losses = NDArray[np.float64]
OnBatch = Callable[[int], None]
"""Told after each batch how many images it held."""


@dataclass(frozen=True)
class Attack:
    """How well a threshold on the loss tells members from strangers, with 95 % intervals.

    Attributes:
        members: How many units were trained on.
        strangers: How many were not.
        auc: Area under the ROC curve; 0.5 is guessing.
        auc_interval: Of it, over resampled units.
        tpr: Share of members that are found where at most 1 % of strangers are accused.
        tpr_interval: Of it, over resampled units.
    """

    members: int
    strangers: int
    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]


def attack(members: Losses, strangers: Losses, seed: int) -> Attack:
    """Attacks by a threshold on the loss of each unit.

    Args:
        members: (M,) losses of units that were trained on.
        strangers: (N,) losses of units that were not.
        seed: Draws the bootstraps.

    Raises:
        ValueError: if either is empty.
    """
    if not len(members) or not len(strangers):
        raise ValueError("an attack needs members and strangers")
    generator = np.random.default_rng(seed)
    draws = np.array(
        [
            _figures(
                generator.choice(members, len(members)), generator.choice(strangers, len(strangers))
            )
            for _ in range(BOOTSTRAPS)
        ]
    )  # (B, 2)
    (low_auc, low_tpr), (high_auc, high_tpr) = np.quantile(draws, [0.025, 0.975], axis=0).tolist()
    auc, tpr = _figures(members, strangers)
    return Attack(len(members), len(strangers), auc, (low_auc, high_auc), tpr, (low_tpr, high_tpr))


def largest_tpr(epsilon: float, delta: float) -> float:
    """The most members that any attack finds at `FALSE_POSITIVE_RATE` under (ε, δ)-DP."""
    # Beyond this e^ε alone is more than 1, and further on more than a float.
    if epsilon > -math.log(FALSE_POSITIVE_RATE):
        return 1.0
    return min(1.0, math.exp(epsilon) * FALSE_POSITIVE_RATE + delta)


def _figures(members: Losses, strangers: Losses) -> tuple[float, float]:
    ordered = np.sort(strangers)
    below = np.searchsorted(ordered, members, side="left")
    up_to = np.searchsorted(ordered, members, side="right")
    auc = 1 - float((below + up_to).mean()) / (2 * len(ordered))
    # Strictly below the first loss that would be one accusation too many.
    threshold = ordered[int(FALSE_POSITIVE_RATE * len(ordered))]
    return auc, float((members < threshold).mean())


@torch.no_grad()
def diffusion_losses(
    model: TrainedModel, images: ImageSet, seed: int, on_batch: OnBatch = lambda count: None
) -> Tensor:
    """Each image's diffusion loss, averaged over `NOISE_LEVELS`, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    process = model.process
    steps = len(process)
    levels = [min(steps - 1, round(level * steps)) for level in NOISE_LEVELS]

    def loss(latents: Tensor) -> Tensor:
        total = torch.zeros(len(latents))
        for level in levels:
            t = torch.full((len(latents),), level, device=latents.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents.device)
            target = process.target(latents, noise, level)
            output = model.joint.denoise(process.add_noise(latents, noise, level), t)
            total += diffusion_loss(output, target).cpu()
        return total / len(levels)

    return _over_batches(model, images, loss, on_batch)


@torch.no_grad()
def classification_losses(
    model: TrainedModel, images: ImageSet, on_batch: OnBatch = lambda count: None
) -> Tensor:
    """Each image's classification loss on its own labels, (n,)."""
    targets = iter(images.targets.split(BATCH))

    def loss(latents: Tensor) -> Tensor:
        return classification_loss(model.logits(latents), next(targets), model.multi_label)

    return _over_batches(model, images, loss, on_batch)


def _over_batches(
    model: TrainedModel, images: ImageSet, loss: Callable[[Tensor], Tensor], on_batch: OnBatch
) -> Tensor:
    losses = [torch.zeros(0)]
    for chosen in torch.arange(len(images)).split(BATCH):
        if len(chosen):
            losses.append(loss(model.encode(images.take(chosen))))
            on_batch(len(chosen))
    return torch.cat(losses)


def by_unit(losses: Tensor, units: Sequence[str]) -> Losses:
    """The mean loss of each unit's images, (U,): the privacy unit is the unit of the attack."""
    _, number = np.unique(np.array(units, dtype=np.str_), return_inverse=True)
    count = np.bincount(number)
    return np.bincount(number, weights=losses.double().numpy()) / np.maximum(count, 1)
