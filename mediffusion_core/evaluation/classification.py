"""Areas under the ROC curve: exact from scores, binned from confusion counts.

A site sends no scores. It sends confusion counts per threshold, which add up over sites: the curve
of the sum is that of the pooled patients, also where a site lacks a class. With few patients and
many thresholds such counts still reveal single scores and labels.

The counts are the state of torchmetrics' binned AUROC, and tests compare both. torchmetrics does
not compute them here: it reads scores within [0, 1] as probabilities and all others as logits, so
that two sites' counts may be on different scales; it has no weights, so that 100 bootstraps of
2,000 samples and 14 classes take 50 s instead of 0.06 s; it computes areas in float32, and gives 0
instead of nan to a class without positives.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_NEARLY_UNIFORM_WITHIN = 6.0
"""Logits on either side of 0 between which the thresholds are about evenly spaced."""


def logit_thresholds(num_thresholds: int = 4001, limit: float = 40.0) -> Tensor:
    """Thresholds on the logit scale, the same at every site.

    Scores between two neighbouring thresholds count as ties. The area is therefore off by at most
    half of the largest share of negatives in one gap. The gaps grow as a hyperbolic sine: with 4001
    thresholds from 0.008 at 0 over 0.011 at ±6 to 0.05 at ±40. Negatives spread as a unit normal
    around -6 leave 0.4 % in the fullest gap, hence an error of at most 0.002. 200 uniform
    thresholds within ±12 were off by up to 0.009 at a prevalence of 1 %, and tied all scores beyond
    ±12. For bootstraps 400 are enough, since their interval is far wider than that error.

    Args:
        num_thresholds: T, at least 2.
        limit: the last threshold, in logits; the first is its negative.

    Returns:
        (T,) float64, ascending.
    """
    end = math.asinh(limit / _NEARLY_UNIFORM_WITHIN)
    steps = torch.linspace(-end, end, num_thresholds, dtype=torch.float64)
    return _NEARLY_UNIFORM_WITHIN * steps.sinh()


def class_scores(logits: Tensor, multi_label: bool) -> Tensor:
    """Each class's score against all others, on the logit scale.

    For multi-label classes these are the logits. For exclusive classes they are
    logit(softmax(logits)), computed as logit_c minus the log-sum-exp of the other logits, since the
    softmax itself saturates and would tie large scores.

    Args:
        logits: (N, C).
        multi_label: whether classes are independent of each other.

    Returns:
        (N, C) in float32, or float64 where the logits are.

    Raises:
        ValueError: exclusive classes, but only one of them.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if multi_label:
        return logits
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise ValueError("exclusive classes need at least 2 logits per sample, got 1")
    own = torch.eye(num_classes, dtype=torch.bool, device=logits.device)
    others = logits[:, None, :].masked_fill(own, -torch.inf)  # (N, C, C)
    return logits - others.logsumexp(dim=-1)  # (N, C)


def threshold_counts(
    scores: Tensor, targets: Tensor, thresholds: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Confusion counts at every threshold; counts of several sites add up.

    Args:
        scores: (N, C) on the logit scale; a score at a threshold counts as positive.
        targets: (N, C) of 0, 1, or nan where the label is missing.
        thresholds: (T,) ascending.
        weights: (N,) how often each sample counts; once each by default.

    Returns:
        (C, T, 2, 2) int64, indexed [class, threshold, target, prediction]. torchmetrics' state of
        a binned AUROC is the same with class and threshold swapped.

    Raises:
        ValueError: shapes differ, a target is not 0, 1 or nan, or a score is nan.
    """
    if weights is None:
        weights = torch.ones(len(scores), dtype=torch.int64)
    return _confusion(_histogram(scores, targets, thresholds, weights[:, None]))[0]


def auc_from_counts(counts: Tensor) -> Tensor:
    """Area under the ROC curve by trapezoids, from (0, 0) to (1, 1).

    Args:
        counts: (..., C, T, 2, 2) from `threshold_counts` or `bootstrap_counts`, or a sum of them.

    Returns:
        (..., C) float64, nan where a class has no positives or no negatives.
    """
    totals = counts[..., :1, :, :].sum(dim=-1, keepdim=True)  # (..., C, 1, 2, 1)
    # (..., C, T, 2): false and true positive rate
    rates = (counts.double() / totals)[..., 1]
    first, last = torch.ones_like(rates[..., :1, :]), torch.zeros_like(rates[..., :1, :])
    curve = torch.cat([first, rates, last], dim=-2)
    return torch.trapezoid(curve[..., 1].flip(-1), curve[..., 0].flip(-1), dim=-1)


def score_histogram(scores: Tensor, targets: Tensor, thresholds: Tensor) -> Tensor:
    """Samples per class, target and gap between thresholds.

    Args:
        scores: (N, C) on the logit scale.
        targets: (N, C) of 0, 1, or nan where the label is missing.
        thresholds: (T,) ascending.

    Returns:
        (C, 2, T + 1) int64; gap k counts the scores that reach exactly k thresholds.

    Raises:
        ValueError: as `threshold_counts`.
    """
    once = torch.ones(len(scores), 1, dtype=torch.int64)
    return _histogram(scores, targets, thresholds, once)[..., 0]


def auc_from_histogram(histogram: Tensor) -> Tensor:
    """Mann-Whitney statistic, ties counting one half.

    Args:
        histogram: (..., 2, G), samples without and with the class in each gap of scores; ascending.

    Returns:
        (...) float64, nan where a class has no positives or no negatives.
    """
    negatives, positives = histogram.double().unbind(dim=-2)  # (..., G) each
    below = negatives.cumsum(dim=-1) - negatives / 2
    pairs: Tensor = positives.sum(dim=-1) * negatives.sum(dim=-1)
    return (positives * below).sum(dim=-1) / pairs


def exact_auc(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under the ROC curve as the Mann-Whitney statistic, ties counting one half.

    Args:
        scores: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.

    Returns:
        (C,) float64, nan where a class has no positives or no negatives.

    Raises:
        ValueError: as `threshold_counts`.
    """
    check_scores(scores, targets)
    classes = zip(_columns(scores), _columns(targets), strict=True)
    areas = [_mann_whitney(one[target == 1], one[target == 0]) for one, target in classes]
    return torch.tensor(areas, dtype=torch.float64)


def macro(auc: Tensor) -> float:
    """Mean over the classes that have an area; nan if there are none.

    Args:
        auc: (C,) with nan where a class has no positives or no negatives.
    """
    return float(torch.nanmean(auc))


def bootstrap_counts(
    scores: Tensor,
    targets: Tensor,
    groups: Sequence[str] | Tensor,
    thresholds: Tensor,
    num_bootstraps: int,
    seed: int,
) -> Tensor:
    """Confusion counts of resampled patients, from which intervals of pooled areas are computed.

    Patients, not images, are drawn with replacement: images of one patient are not independent.
    The sum over sites, replicate by replicate, is a bootstrap stratified by site.

    Args:
        scores: (N, C) on the logit scale.
        targets: (N, C) of 0, 1, or nan where the label is missing.
        groups: (N,) patient or lesion of each sample.
        thresholds: (T,) ascending.
        num_bootstraps: B.
        seed: of the draws.

    Returns:
        (B, C, T, 2, 2) int64.

    Raises:
        ValueError: as `threshold_counts`, or another number of groups than of samples.
    """
    weights = multiplicities(groups, num_bootstraps, seed)  # (N, B)
    return _confusion(_histogram(scores, targets, thresholds, weights))


def bootstrap_auc(
    scores: Tensor,
    targets: Tensor,
    groups: Sequence[str] | Tensor,
    num_bootstraps: int,
    seed: int,
) -> Tensor:
    """Exact areas of resampled patients, from scores.

    With the same seed it draws the same patients as `bootstrap_counts`, whose arguments and errors
    it shares.

    Returns:
        (B, C) float64, nan where a resample left a class without positives or without negatives.
    """
    weights = multiplicities(groups, num_bootstraps, seed)  # (N, B)
    areas = []
    for column in range(scores.shape[1]):
        own, target = scores[:, column : column + 1], targets[:, column : column + 1]
        # Every score is a threshold, so only equal scores share a gap.
        histogram = _histogram(own, target, torch.unique(own), weights)[0]  # (2, T + 1, B)
        areas.append(auc_from_histogram(histogram.permute(2, 0, 1)))
    return torch.stack(areas, dim=1)


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the finite values; (nan, nan) if there are none.

    Args:
        values: any shape, one value per bootstrap.
        level: share of the values inside the interval.
    """
    finite = values[values.isfinite()].double()
    if len(finite) == 0:
        return float("nan"), float("nan")
    tail = (1.0 - level) / 2.0
    return float(finite.quantile(tail)), float(finite.quantile(1.0 - tail))


def macro_interval(auc: Tensor, draws: Tensor) -> tuple[float, float]:
    """Interval of the macro area over the draws that have an area for each class of the estimate.

    A draw without positives of a rare class is left out: its mean over the other classes would be
    another figure.

    Args:
        auc: (C,), nan where a class has no area.
        draws: (B, C), one row a bootstrap.
    """
    return interval(macro_draws(auc, draws))


def macro_draws(auc: Tensor, draws: Tensor) -> Tensor:
    """The macro area of each bootstrap (B,); nan where it lacks a class of the estimate.

    Args:
        auc: (C,), nan where a class has no area.
        draws: (B, C), one row a bootstrap.
    """
    return draws[:, auc.isfinite()].mean(dim=1)


def check_scores(scores: Tensor, targets: Tensor) -> None:
    """Checks that scores and targets fit each other.

    Args:
        scores: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.

    Raises:
        ValueError: shapes differ, a target is not 0, 1 or nan, or a score is nan.
    """
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(
            f"scores and targets must both be (N, C), "
            f"got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    if scores.isnan().any():
        raise ValueError("scores contain nan: the model has diverged")
    if not ((targets == 0) | (targets == 1) | targets.isnan()).all():
        raise ValueError("targets must be 0, 1, or nan where missing")


def multiplicities(groups: Sequence[str] | Tensor, num_bootstraps: int, seed: int) -> Tensor:
    """How often each sample counts in each replicate: (N, B) int64."""
    names = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    unique, inverse = np.unique(names, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    # Without held-out patients (G = 0) nothing is drawn, and all counts are 0.
    shape = (num_bootstraps, len(unique))
    drawn = torch.randint(max(len(unique), 1), shape, generator=generator)  # (B, G)
    times = torch.zeros(shape, dtype=torch.int64).scatter_add_(1, drawn, torch.ones_like(drawn))
    return times.T[torch.from_numpy(inverse)]  # (N, B)


def _columns(values: Tensor) -> list[np.ndarray]:
    return list(values.detach().cpu().double().numpy().T)


def _mann_whitney(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Share of the pairs in which the positive scores higher, ties counting one half."""
    pairs = len(positives) * len(negatives)
    if not pairs:
        return float("nan")
    from scipy.stats import mannwhitneyu  # takes a second, at every site

    # The method concerns the p-value, which is not used; this one is the cheapest.
    return float(mannwhitneyu(positives, negatives, method="asymptotic").statistic) / pairs


def _histogram(scores: Tensor, targets: Tensor, thresholds: Tensor, weights: Tensor) -> Tensor:
    """Weighted samples per class, target and gap between thresholds, for weights (N, B).

    Returns:
        (C, 2, T + 1, B) int64; gap k counts the scores that reach exactly k thresholds.
    """
    check_scores(scores, targets)
    if len(weights) != len(scores):
        raise ValueError(f"got {len(weights)} weights or groups for {len(scores)} samples")
    num_classes, num_gaps = scores.shape[1], len(thresholds) + 1
    scores, targets = scores.detach().cpu().double(), targets.detach().cpu()
    weights = weights.cpu().long()
    gaps = torch.bucketize(scores.T.contiguous(), thresholds.cpu().double(), right=True)  # (C, N)
    histogram = torch.zeros(num_classes, 2, num_gaps, weights.shape[1], dtype=torch.int64)
    for class_index in range(num_classes):
        target = targets[:, class_index]
        for value in (0, 1):
            chosen = target == value
            histogram[class_index, value].index_add_(0, gaps[class_index, chosen], weights[chosen])
    return histogram


def _confusion(histogram: Tensor) -> Tensor:
    """Confusion counts (B, C, T, 2, 2) from a histogram (C, 2, T + 1, B)."""
    below = histogram.cumsum(dim=2)[:, :, :-1]  # (C, 2, T, B)
    total = histogram.sum(dim=2, keepdim=True)  # (C, 2, 1, B)
    counts = torch.stack([below, total - below], dim=-1)  # (C, 2, T, B, 2)
    return counts.permute(3, 0, 2, 1, 4).contiguous()
