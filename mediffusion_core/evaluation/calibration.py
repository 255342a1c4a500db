"""Temperature scaling, and figures of calibration.

A temperature is one number by which all logits are divided (arXiv 1706.04599, section 4.2). It
changes confidences, never which of the exclusive classes comes first. It is fitted on validation
patients: each site sends the sum of its losses at every temperature of one fixed grid. The sums
add up over sites, and the minimum of the total is that of the pooled patients.

With independent classes each known pair of sample and class is one prediction. With exclusive
classes each sample is one prediction; samples whose class is missing are left out.
"""

import math

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.evaluation.classification import check_scores

TEMPERATURES = torch.logspace(-3, 3, 81, base=2, dtype=torch.float64)
"""The grid (K,), from 1/8 to 8 in steps of about 5 %, the same at every site."""

NUM_BINS = 15
_LARGEST_BELOW_1 = 1.0 - 2.0**-53


def temperature_losses(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Negative log-likelihood of the known labels at every temperature; sites' sums add up.

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


def best_temperature(losses: Tensor, temperatures: Tensor = TEMPERATURES) -> float:
    """The temperature of the least loss.

    Between the grid's points the loss is interpolated by a parabola in log temperature.

    Args:
        losses: (K,) from `temperature_losses`, or their sum over sites.
        temperatures: (K,), each a constant factor above the last.

    Returns:
        Within the grid; 1 where all losses are equal, as without labels.
    """
    if bool(losses.max() == losses.min()):
        return 1.0
    lowest = int(losses.argmin())
    if lowest in (0, len(losses) - 1):
        return float(temperatures[lowest])
    before, least, after = losses[lowest - 1 : lowest + 2].tolist()
    # `argmin` returns the first of equal values: `before` is above `least`, the divisor positive.
    steps = 0.5 * (before - after) / (before - 2 * least + after)
    ratio = float(temperatures[1] / temperatures[0])
    return float(temperatures[lowest]) * math.pow(ratio, steps)


def calibration_error(probabilities: Tensor, targets: Tensor, multi_label: bool) -> float:
    """Expected calibration error over 15 bins of equal width (arXiv 1706.04599, eq. 3).

    Independent classes: a class's probability against its frequency. Exclusive classes: the top
    class's probability against its accuracy.

    Args:
        probabilities: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.
        multi_label: whether classes are independent of each other.

    Returns:
        From 0 to 1, nan where no label is known.

    Raises:
        ValueError: as `classification.check_scores`.
    """
    from torchmetrics.functional.classification import binary_calibration_error  # takes seconds

    confidence, right = _known(probabilities, targets, multi_label)
    if not len(confidence):
        return float("nan")
    confidence, right = _predicted(confidence, right, multi_label)
    return float(binary_calibration_error(confidence, right.long(), n_bins=NUM_BINS))


def reliability_sums(
    probabilities: Tensor, targets: Tensor, multi_label: bool
) -> tuple[Tensor, Tensor]:
    """Sums from which both figures of calibration follow; sites' sums add up.

    Args:
        probabilities: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.
        multi_label: whether classes are independent of each other.

    Returns:
        Predictions, their confidence and how many are right, in each bin (15, 3); and the sum of
        squared distances (1,) as of `brier_score`. Both float64.

    Raises:
        ValueError: as `classification.check_scores`.
    """
    given, true = _known(probabilities, targets, multi_label)
    squares = (given - true).square().sum().reshape(1)
    confidence, right = _predicted(given, true, multi_label)
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, right], dim=1)
    sums = torch.zeros(NUM_BINS, 3, dtype=torch.float64)
    return sums.index_add_(0, bins, values), squares


def calibration_from_sums(reliability: Tensor, squares: Tensor) -> tuple[float, float]:
    """Calibration error and Brier score of `reliability_sums`, or of their sum over sites.

    Both are nan where no label is known.
    """
    count, confidence, right = reliability.unbind(dim=1)
    total = count.sum()
    return float((confidence - right).abs().sum() / total), float(squares.sum() / total)


def brier_score(probabilities: Tensor, targets: Tensor, multi_label: bool) -> float:
    """Mean squared distance of probabilities from labels (Brier 1950); torchmetrics has none.

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
    """Values and known labels in float64: pairs (M,) if `multi_label`, else rows (M, C)."""
    check_scores(values, targets)
    known = ~targets.isnan()
    chosen = known if multi_label else known.all(dim=1)
    return values[chosen].double(), targets[chosen].double()


def _predicted(values: Tensor, right: Tensor, multi_label: bool) -> tuple[Tensor, Tensor]:
    """Confidence of each prediction and whether it is right (M,), from those of `_known`."""
    if not multi_label:
        values, top = values.max(dim=1)
        right = right.gather(1, top[:, None]).squeeze(1)
    # torchmetrics gives a confidence of exactly 1 a bin of its own, beyond the last one.
    return values.clamp(max=_LARGEST_BELOW_1), right
