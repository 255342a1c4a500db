"""The rules of robust aggregation: sites and weights of a component's aggregate."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.settings import Aggregation
from server.robust_statistics import capped, krum_scores, middle, trimmed_mean

TINY = 1e-300
"""Below every product of two lengths above 0."""


@dataclass(frozen=True)
class Changes:
    """Inner products of the sites' changes of a component's weights, each as one vector."""

    sites: list[str]
    products: Tensor
    """(n, n) in float64."""

    def norms(self) -> Tensor:
        """(n,) of each site's change."""
        return self.products.diagonal().clamp(min=0).sqrt()

    def agreements(self, malicious: int) -> Tensor:
        """(n,) of the f-th largest cosine of each site's change with those of the others.

        Of 2 f + 1 sites an honest one has f honest others, and a malicious one f - 1 accomplices.
        A site that changed nothing is at a right angle to all.
        """
        lengths = self.norms()
        cosines = self.products / (lengths[:, None] * lengths).clamp(min=TINY)
        cosines.fill_diagonal_(-torch.inf)
        return cosines.sort(dim=1, descending=True).values[:, malicious - 1]

    def squares(self, sites: Collection[str]) -> Tensor:
        """Squared distances of the given sites' weights, in their order."""
        rows = [self.sites.index(site) for site in sites]
        products = self.products[rows][:, rows]
        lengths = products.diagonal()
        return (lengths[:, None] + lengths - 2 * products).clamp(min=0)


@dataclass(frozen=True)
class Choice:
    """The sites in the aggregate of a component, and their weights.

    Attributes:
        shares: Of each site in their weighted mean, in order.
        trim: How many values are left out at each end of the sites' values. Above 0 there are no
            weights.
        tolerated: How many false sites do not matter; None where the rule promises nothing.
    """

    shares: Mapping[str, float]
    trim: int = 0
    tolerated: int | None = None

    def combined(self, stack: Tensor) -> Tensor:
        """(values,) in float64 of the values of the sites, (n, values)."""
        if self.trim:
            return trimmed_mean(stack, self.trim)
        return torch.tensor([*self.shares.values()], dtype=torch.float64) @ stack.double()


def choose(
    rule: Aggregation, malicious: int, weights: Mapping[str, float], changes: Changes | None = None
) -> Choice:
    """Applies a rule to the sites that trained a component, at least one.

    mean          weights, each cut to at most 1 / (2 f + 1) of their sum
    median        of each value (arXiv 1803.01498)
    trimmed_mean  of each value, without the f largest and the f smallest ones (arXiv 1803.01498)
    krum          the site with the smallest `krum_scores` (arXiv 1703.02757, section 4)
    multi_krum    the mean of the n - f - 2 sites with the smallest ones (section 5)

    All but the mean ignore weights. Where too few sites answered for f, a rule takes the largest f
    that it can; two sites are averaged.

    Args:
        rule: One of them.
        malicious: f, at least 1.
        weights: By site, in the order of the sites, all positive.
        changes: Of the component; Krum needs them.
    """
    sites, number = list(weights), len(weights)
    if rule == "mean":
        cut = capped(weights, malicious)
        total = sum(cut.values())
        return Choice({site: weight / total for site, weight in cut.items()})
    if rule == "median":
        return Choice(_equal(sites), middle(number), middle(number))
    if rule == "trimmed_mean":
        trim = min(malicious, middle(number))
        return Choice(_equal(sites), trim, trim)
    if number < 3:
        return Choice(_equal(sites), tolerated=0)
    assert changes is not None
    tolerated = min(malicious, (number - 3) // 2)
    scores = krum_scores(changes.squares(sites), tolerated).tolist()
    best = sorted(range(number), key=scores.__getitem__)  # of equal scores the first site
    kept = best[: 1 if rule == "krum" else number - tolerated - 2]
    return Choice(_equal([sites[index] for index in sorted(kept)]), tolerated=tolerated)


def _equal(sites: Collection[str]) -> dict[str, float]:
    return dict.fromkeys(sites, 1 / len(sites))
