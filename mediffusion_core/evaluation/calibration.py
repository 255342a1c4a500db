"""Temperature scaling, and how far probabilities stand from frequencies.

A temperature is one number by which all logits are divided (arXiv 1706.04599, section 4.2): it
changes how sure a model is, never which class it names. It is found on validation patients. What
leaves a site for that is a sum of losses at each temperature of one fixed grid, which adds up over
sites: the minimum of the sum is that of the pooled patients.

Where classes are independent each known pair of sample and class is a prediction of its own; where
they exclude each other a sample is one, and is left out where its class is missing.
"""

import math

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.evaluation.classification import check_scores

TEMPERATURES = torch.logspace(-3, 3, 81, base=2, dtype=torch.float64)
"""The grid (K,), from 1/8 to 8 in steps of about 5 %, the same at every site."""

NUM_BINS = 15


def temperature_losses(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Negative log-likelihood of the known labels at every temperature, to be added up over sites.

    Args:
        logits: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.
        multi_label: whether classes are independent of each other.

    Returns:
        (K,) float64, sums over samples and, if `multi_label`, classes; 0 where no label is known.

    Raises:
        ValueError: as `classification.check_scores`.
    """
    check_scores(logits, targets)
    logits, targets = logits.double(), targets.double()
    # The loss of a sample is a mean over independent classes.
    classes = logits.shape[1] if multi_label else 1
    losses = [classification_loss(logits / one, targets, multi_label) for one in TEMPERATURES]
    return classes * torch.stack([loss.sum() for loss in losses])


def best_temperature(losses: Tensor) -> float:
    """The temperature of the least loss, between the grid's points by a parabola in its logarithm.

    Args:
        losses: (K,) as `temperature_losses` gives them, or the sum of several sites'.

    Returns:
        1 where no temperature is better than another, as without a label; never beyond the grid.
    """
    if bool(losses.max() == losses.min()):
        return 1.0
    lowest = int(losses.argmin())
    if lowest in (0, len(losses) - 1):
        return float(TEMPERATURES[lowest])
    before, least, after = losses[lowest - 1 : lowest + 2].tolist()
    # `argmin` names the first of equals, so that `before` is above `least`.
    steps = 0.5 * (before - after) / (before - 2 * least + after)
    ratio = float(TEMPERATURES[1] / TEMPERATURES[0])
    return float(TEMPERATURES[lowest]) * math.pow(ratio, steps)


def calibration_error(probabilities: Tensor, targets: Tensor, multi_label: bool) -> float:
    """Expected calibration error over 15 bins of equal width (arXiv 1706.04599, eq. 3).

    Independent classes: the probability of a class against how often it is there. Exclusive ones:
    the probability of the top class against how often it is right.

    Args:
        probabilities: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.
        multi_label: whether classes are independent of each other.

    Returns:
        From 0 to 1, nan where no label is known.

    Raises:
        ValueError: as `classification.check_scores`.
    """
    sure, right = _known(probabilities, targets, multi_label)
    if not multi_label:
        sure, top = sure.max(dim=1)
        right = right.gather(1, top[:, None]).squeeze(1)
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)
    bins = torch.bucketize(sure, edges[1:-1])
    gaps = torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(0, bins, sure - right)
    return float(gaps.abs().sum() / len(sure)) if len(sure) else float("nan")


def brier_score(probabilities: Tensor, targets: Tensor, multi_label: bool) -> float:
    """Mean squared distance of probabilities from labels (Brier 1950).

    Args:
        probabilities: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.
        multi_label: whether classes are independent of each other.

    Returns:
        The mean over known pairs, from 0 to 1, or over samples of the sum over exclusive classes,
        from 0 to 2; nan where no label is known.

    Raises:
        ValueError: as `classification.check_scores`.
    """
    given, true = _known(probabilities, targets, multi_label)
    squares = (given - true).square()
    return float((squares if multi_label else squares.sum(dim=1)).mean())


def _known(values: Tensor, targets: Tensor, multi_label: bool) -> tuple[Tensor, Tensor]:
    """What can be held against a label, float64: pairs (M,) if `multi_label`, else rows (M, C)."""
    check_scores(values, targets)
    known = ~targets.isnan()
    chosen = known if multi_label else known.all(dim=1)
    return values[chosen].double(), targets[chosen].double()
