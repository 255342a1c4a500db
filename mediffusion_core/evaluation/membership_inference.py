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

FALSE_POSITIVE_RATE, STRICT_FALSE_POSITIVE_RATE = 0.01, 0.001
NOISE_LEVELS = (0.02, 0.05, 0.15, 0.3, 0.5, 0.7)
"""Fractions of the noise process at which an image's diffusion loss is measured."""
AVERAGED = slice(1, 4)
"""The levels whose mean is the attack that chooses none: 0.05, 0.15 and 0.3."""
BOOTSTRAPS = 1000
BATCH = 128
SMALLEST = 1e-12
"""A probability of 0 counts as this."""

Losses = NDArray[np.float64]
"""One number for each unit, smaller for likelier members."""
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
        strict_tpr: Share of members that are found where at most 0.1 % of strangers are accused;
            with fewer than 1,000 strangers none is.
        strict_tpr_interval: Of it, over resampled units.
    """

    members: int
    strangers: int
    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    strict_tpr: float
    strict_tpr_interval: tuple[float, float]


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
    )  # (B, 3)
    quantiles = np.quantile(draws, [0.025, 0.975], axis=0).T.tolist()  # (3, 2)
    auc, tpr, strict = ((low, high) for low, high in quantiles)
    figures = _figures(members, strangers)
    return Attack(
        len(members), len(strangers), figures[0], auc, figures[1], tpr, figures[2], strict
    )


def largest_tpr(epsilon: float, delta: float) -> float:
    """The most members that any attack finds at `FALSE_POSITIVE_RATE` under (ε, δ)-DP."""
    # Beyond this e^ε alone is more than 1, and further on more than a float.
    if epsilon > -math.log(FALSE_POSITIVE_RATE):
        return 1.0
    return min(1.0, math.exp(epsilon) * FALSE_POSITIVE_RATE + delta)


def roc_curve(members: Losses, strangers: Losses) -> tuple[Losses, Losses]:
    """False and true positive rates (K,) of all thresholds, rising from 0 to 1."""
    thresholds = np.unique(np.concatenate([members, strangers]))
    rates = [
        np.searchsorted(np.sort(losses), thresholds, side="right") / len(losses)
        for losses in (strangers, members)
    ]
    false, true = (np.concatenate([[0.0], rate]) for rate in rates)
    return false, true


def by_best_column(
    members: Losses, strangers: Losses, seed: int
) -> tuple[int, list[float], Losses, Losses]:
    """Chooses among several losses by the AUC on one half of the units, to attack the other half.

    Args:
        members: (M, K), each row the losses of a unit.
        strangers: (N, K).
        seed: Draws the halves.

    Returns:
        The chosen column, the AUC of each column on the first half, and the losses in the chosen
        column of the other half's members and strangers.

    Raises:
        ValueError: if there are fewer than two members or strangers.
    """
    if min(len(members), len(strangers)) < 2:
        raise ValueError("halves need at least two members and two strangers")
    generator = np.random.default_rng(seed)
    halves = [
        np.array_split(losses[generator.permutation(len(losses))], 2)
        for losses in (members, strangers)
    ]
    (first, other), (first_strangers, other_strangers) = halves
    aucs = [
        _figures(first[:, column], first_strangers[:, column])[0]
        for column in range(members.shape[1])
    ]
    best = int(np.argmax(aucs))
    return best, aucs, other[:, best], other_strangers[:, best]


def _figures(members: Losses, strangers: Losses) -> tuple[float, float, float]:
    ordered = np.sort(strangers)
    below = np.searchsorted(ordered, members, side="left")
    up_to = np.searchsorted(ordered, members, side="right")
    auc = 1 - float((below + up_to).mean()) / (2 * len(ordered))
    # Strictly below the first loss that would be one accusation too many.
    tpr, strict = (
        float((members < ordered[int(rate * len(ordered))]).mean())
        for rate in (FALSE_POSITIVE_RATE, STRICT_FALSE_POSITIVE_RATE)
    )
    return auc, tpr, strict


def timesteps_of(model: TrainedModel) -> list[int]:
    """The timesteps of `NOISE_LEVELS`."""
    steps = len(model.process)
    return [min(steps - 1, round(level * steps)) for level in NOISE_LEVELS]


@torch.no_grad()
def diffusion_losses(
    model: TrainedModel, images: ImageSet, seed: int, on_batch: OnBatch = lambda count: None
) -> Tensor:
    """Each image's diffusion loss at each of `timesteps_of`, (n, K)."""
    generator = torch.Generator().manual_seed(seed)
    process, levels = model.process, timesteps_of(model)

    def loss(latents: Tensor) -> Tensor:
        columns = []
        for level in levels:
            t = torch.full((len(latents),), level, device=latents.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents.device)
            target = process.target(latents, noise, level)
            output = model.joint.denoise(process.add_noise(latents, noise, level), t)
            columns.append(diffusion_loss(output, target).cpu())
        return torch.stack(columns, dim=1)

    return _over_batches(model, images, loss, on_batch, torch.zeros(0, len(levels)))


@torch.no_grad()
def classification_losses(
    model: TrainedModel, images: ImageSet, on_batch: OnBatch = lambda count: None
) -> Tensor:
    """Each image's classification loss on its own labels, (n,)."""
    targets = iter(images.targets.split(BATCH))

    def loss(latents: Tensor) -> Tensor:
        return classification_loss(model.logits(latents), next(targets), model.multi_label)

    return _over_batches(model, images, loss, on_batch, torch.zeros(0))


def label_entropies(probabilities: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """The modified entropy of each image, (n,), 0 for certain and correct predictions.

    -(1 - p_y) log p_y - Σ_{i≠y} p_i log(1 - p_i) (arXiv 2003.10595, eq. 8); of independent classes
    -(1 - p) log p for the probability p of each known label, in the mean.

    Args:
        probabilities: (n, C).
        targets: (n, C) in {0, 1}, NaN where a label is missing.
        multi_label: Whether the classes are independent.
    """
    own = torch.where(targets > 0.5, probabilities, 1 - probabilities)  # (n, C)
    terms = -(1 - own) * own.clamp(min=SMALLEST).log()
    known = ~targets.isnan()
    total = (terms * known).sum(dim=1)
    return total / known.sum(dim=1).clamp(min=1) if multi_label else total


def entropies(probabilities: Tensor, multi_label: bool) -> Tensor:
    """The entropy of each image's probabilities (n, C), (n,); it needs no label.

    Of independent classes the mean of the classes' entropies.
    """
    terms: Tensor = torch.special.entr(probabilities)  # (n, C)
    if not multi_label:
        return terms.sum(dim=1)
    terms = terms + torch.special.entr(1 - probabilities)
    return terms.mean(dim=1)


def _over_batches(
    model: TrainedModel,
    images: ImageSet,
    loss: Callable[[Tensor], Tensor],
    on_batch: OnBatch,
    none: Tensor,
) -> Tensor:
    losses = [none]
    for chosen in torch.arange(len(images)).split(BATCH):
        if len(chosen):
            losses.append(loss(model.encode(images.take(chosen))))
            on_batch(len(chosen))
    return torch.cat(losses)


def by_unit(losses: Tensor, units: Sequence[str]) -> Losses:
    """The mean of each unit's images, (U, ...): the privacy unit is the unit of the attack.

    Args:
        losses: One or more for each image, (n, ...).
        units: Of each image.
    """
    names, number = np.unique(np.array(units, dtype=np.str_), return_inverse=True)
    sums = np.zeros((len(names), *losses.shape[1:]))
    np.add.at(sums, number, losses.double().numpy())
    counts = np.bincount(number, minlength=len(names)).reshape(-1, *[1] * (losses.ndim - 1))
    means: Losses = sums / np.maximum(counts, 1)
    return means
