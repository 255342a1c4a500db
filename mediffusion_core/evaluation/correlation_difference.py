"""Correlation difference: whether counterfactuals change findings together as data have them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.evaluation.classification import interval, multiplicities

CONSTANT = 1e-9
"""A smaller variance is that of a constant."""


def label_correlations(labels: Tensor) -> Tensor:
    """Pearson's r of each two findings over the images with both labels, (C, C); 0 if constant.

    Args:
        labels: (N, C) in {0, 1}, nan where missing.
    """
    known = labels.isfinite()
    found = torch.zeros(labels.shape[1], labels.shape[1], dtype=torch.float64)
    for query in range(labels.shape[1]):
        for other in range(labels.shape[1]):
            both = known[:, query] & known[:, other]
            pair = labels[both][:, [query, other]].double()
            found[query, other] = _correlations(pair, 0, torch.ones(len(pair), 1))[0, 1]
    return found


def correlation_difference(
    before: Tensor,
    after: Tensor,
    target: Target,
    labels: Tensor,
    groups: Sequence[str],
    num_bootstraps: int,
    seed: int,
) -> Estimate:
    """CD (arXiv 2203.15636), averaged over the findings that the targets name.

    CD_q = Σ_a |r(δ_q, δ_a) - r(y_q, y_a)|, over all findings a: δ is the change of an independent
    classifier's decision, in {-1, 0, 1}, over the images whose target is q, and y are labels.
    As in the authors' code, the correlation with a constant is 0.

    Args:
        before: The independent classifier's decisions on the sources, booleans (n, C).
        after: Its decisions on the counterfactuals, booleans (n, C).
        target: The target of each; findings, one an image.
        labels: Labels of the data, (N, C) in {0, 1}, nan where missing.
        groups: Patient or lesion of each of the n images.
        num_bootstraps: B, over patients.
        seed: Of the draws.

    Returns:
        0 if findings change together as they occur together; nan for exclusive classes.
    """
    nothing = float("nan")
    if not target.multi_label:
        return Estimate(nothing, nothing, nothing, 0)
    changes = after.double() - before.double()  # (n, C)
    expected = label_correlations(labels)
    drawn = multiplicities(groups, num_bootstraps, seed).double()
    weights = torch.cat([torch.ones(len(changes), 1), drawn], dim=1)  # (n, 1 + B)
    index = target.index.reshape(-1)
    found = []
    for query in index.unique().tolist():
        rows = index == query
        made = _correlations(changes[rows], query, weights[rows])
        distance = (made - expected[query]).abs().sum(dim=1)  # (1 + B,)
        found.append(distance.where(weights[rows].sum(dim=0) > 0, torch.nan))
    value, *draws = torch.stack(found).nanmean(dim=0).tolist()
    return Estimate(value, *interval(torch.tensor(draws)), len(changes))


def _correlations(values: Tensor, query: int, weights: Tensor) -> Tensor:
    """Weighted correlation of column `query` with each column; (W, C) of (n, C) and (n, W)."""
    shares = (weights / weights.sum(dim=0).clamp(min=1)).double().T  # (W, n)
    mean = shares @ values  # (W, C)
    variance = shares @ values.square() - mean.square()
    products = shares @ (values * values[:, [query]]) - mean * mean[:, [query]]
    scale = (variance * variance[:, [query]]).clamp(min=0).sqrt()
    defined = (variance > CONSTANT) & (variance[:, [query]] > CONSTANT)
    return torch.where(defined, products / scale.clamp(min=CONSTANT), 0.0)
