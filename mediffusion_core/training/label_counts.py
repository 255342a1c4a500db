"""How often each class occurs among the labelled training images of all sites."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelCounts:
    """Counts over images; the server adds up the sites' and sends them all the same sum.

    With priors of single sites each site would train towards other logits.
    """

    positive: Tensor
    """(C,) images with the class or finding."""
    known: Tensor
    """(C,) images with a known label of it."""

    @classmethod
    def of_census(cls, sites: Iterable[Mapping[str, int | list[int]]]) -> Self:
        """Adds up the sites' `per_class` and `known_per_class`."""
        counts = [(site["per_class"], site["known_per_class"]) for site in sites]
        positive, known = torch.tensor(counts, dtype=torch.float32).sum(dim=0)
        return cls(positive, known)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> Self:
        """The inverse of `arrays`."""
        return cls(arrays["positive"], arrays["known"])

    def arrays(self) -> dict[str, Tensor]:
        """The counts as they travel."""
        return {"positive": self.positive, "known": self.known}

    def prevalence(self, multi_label: bool) -> Tensor:
        """π (C,): of a finding (n + 1) / (known + 2), of an exclusive class (n + 1) / (Σ n + C).

        Laplace's rule: a class without an image is rare, not impossible.
        """
        if multi_label:
            return (self.positive + 1) / (self.known + 2)
        return (self.positive + 1) / (self.positive.sum() + len(self.positive))

    def log_prior(self, multi_label: bool) -> Tensor:
        """The logits of the optimal classifier without an input, π for each image.

        log π of exclusive classes (arXiv 2007.07314, eq. 9), log π / (1 - π) of findings, (C,).
        """
        prevalence = self.prevalence(multi_label)
        return prevalence.logit() if multi_label else prevalence.log()
