"""Robust statistics over sites: a few false sites cannot move them without bound.

f is the number of sites that may be malicious.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def middle(sites: int) -> int:
    """Number of values that the median of so many leaves out at each end."""
    return (sites - 1) // 2


def trimmed_mean(stack: Tensor, trim: int) -> Tensor:
    """The mean by column without the `trim` largest and the `trim` smallest values.

    Coordinate-wise trimmed mean, and with `middle` the median (arXiv 1803.01498, definitions 1 and
    2). As many false values as are trimmed at an end leave it within the range of the others.

    Args:
        stack: One row a site, (n, ...).
        trim: Less than n / 2.

    Returns:
        (...) in float64.
    """
    ordered = stack.sort(dim=0).values if trim else stack
    return ordered[trim : len(stack) - trim].double().mean(dim=0)


def median(values: Sequence[Tensor]) -> Tensor:
    """The median of tensors of one shape, at least one, in float64."""
    return trimmed_mean(torch.stack(list(values)), middle(len(values)))


def capped(weights: Mapping[str, float], malicious: int) -> dict[str, float]:
    """Weights of sites, cut to one level: f sites together have less than half of their sum.

    The level is the largest at which no site has more than 1 / (2 f + 1) of the sum. Where too few
    sites have a weight for that, it is the smallest weight, and their weights are equal.

    Args:
        weights: By site, not negative.
        malicious: f. With 0 the weights are returned as they are.
    """
    ordered = sorted(weight for weight in weights.values() if weight > 0)
    if not malicious or not ordered:
        return dict(weights)
    parts, level = 2 * malicious + 1, ordered[0]
    if len(ordered) > parts:
        # At the last number of sites that are cut, the level is the sum of all others.
        for cut in range(parts):
            others = ordered[: len(ordered) - cut]
            level = sum(others) / (parts - cut)
            if others[-1] <= level:
                break
    return {site: min(weight, level) for site, weight in weights.items()}


def krum_scores(squares: Tensor, malicious: int) -> Tensor:
    """Krum's score of each site: the sum of its n - f - 2 smallest squared distances to others.

    arXiv 1703.02757, section 4. The site with the smallest score is the one that Krum selects.

    Args:
        squares: Squared distances of the sites' weights, (n, n), n at least 3.
        malicious: f, at most (n - 3) / 2.
    """
    others = squares.clone().fill_diagonal_(torch.inf)
    nearest = others.sort(dim=1).values[:, : len(squares) - malicious - 2]
    return nearest.sum(dim=1)
