"""Directions of features that tell patients apart, and do not change between images of one.

Photographs of one lesion differ in light, distance and place; photographs of two lesions differ in
the lesion as well. Directions in which the first differ little and the second much are worth
learning. Only groups are needed, no label: a linear discriminant (Fisher, 1936) whose classes are
the patients or lesions. All that it needs are sums, so that sites form it exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

RIDGE = 1e-3
"""Added to the variance of each principal direction of standardised features."""
PART = 4096
"""Images that are added at once."""
FLOOR = 1e-4
"""Added to the deviation of each feature."""


@dataclass(frozen=True)
class FeatureSums:
    """Sums over the features of a site's images, or of all sites'; D features."""

    count: float
    """Images, n."""
    mean: Tensor
    """(D,) float64."""
    scatter: Tensor
    """Σ (x - mean)(x - mean)ᵀ over all images, (D, D) float64."""
    repeats: float
    """Images beyond the first of each group, r = Σ_g (n_g - 1)."""
    within: Tensor
    """Σ_g Σ_{x in g} (x - mean_g)(x - mean_g)ᵀ, (D, D) float64."""

    @classmethod
    def of(cls, features: Tensor, groups: Sequence[str]) -> Self:
        """Sums over features (n, D), whose n images belong to groups: patients or lesions."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
        group = torch.tensor([numbers[name] for name in groups], dtype=torch.long)  # (n,)
        count, width = features.shape
        sums = torch.zeros(len(numbers), width, dtype=torch.float64)  # (G, D)
        squares = torch.zeros(width, width, dtype=torch.float64)
        for rows in torch.arange(count).split(PART) if count else ():
            part = features[rows].double()
            sums.index_add_(0, group[rows], part)
            squares += part.T @ part
        mean = sums.sum(dim=0) / max(count, 1)
        means = sums / torch.bincount(group, minlength=len(numbers))[:, None]  # (G, D)
        return cls(
            count=float(count),
            mean=mean,
            scatter=_symmetric(squares - count * torch.outer(mean, mean)),
            repeats=float(count - len(numbers)),
            within=_symmetric(squares - sums.T @ means),
        )

    @classmethod
    def pooled(cls, parts: Sequence[Self]) -> Self:
        """The sums over all images of several sites, whose groups differ.

        Two scatters add up, plus n_1 n_2 / (n_1 + n_2) times the square of the difference of their
        means (Chan, Golub and LeVeque, 1983); here for any number of parts.
        """
        count = sum(part.count for part in parts)
        mean = torch.stack([part.count * part.mean for part in parts]).sum(dim=0) / max(count, 1.0)
        scatter = torch.zeros_like(parts[0].scatter)
        for part in parts:
            apart = part.mean - mean
            scatter = scatter + part.scatter + part.count * torch.outer(apart, apart)
        within = torch.stack([part.within for part in parts]).sum(dim=0)
        return cls(count, mean, scatter, sum(part.repeats for part in parts), within)

    def arrays(self) -> dict[str, Tensor]:
        """As they travel, in float32."""
        return {
            "count": torch.tensor([self.count]),
            "mean": self.mean.float(),
            "scatter": self.scatter.float(),
            "repeats": torch.tensor([self.repeats]),
            "within": self.within.float(),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> Self:
        """The sums that travelled."""
        return cls(
            count=float(arrays["count"]),
            mean=arrays["mean"].double(),
            scatter=arrays["scatter"].double(),
            repeats=float(arrays["repeats"]),
            within=arrays["within"].double(),
        )


def _symmetric(matrix: Tensor) -> Tensor:
    """A product's transpose may differ from it in the last bit."""
    return (matrix + matrix.T) / 2


@dataclass(frozen=True)
class Whitening:
    """A linear map from D features to K directions of mean variance 1."""

    mean: Tensor
    """(D,) float32."""
    directions: Tensor
    """(D, K) float32."""

    @classmethod
    def of(cls, sums: FeatureSums, directions: int, shrinkage: float) -> Self:
        """The map that whitens features, and then their scatter within groups.

        With the K first principal directions of standardised features, scaled to unit variance, and
        W their covariance within groups:

            x ↦ (1 / √v) ((1 - s) W + s tr(W) / K · I)^(-1/2) z    z = Λ^(-1/2) Vᵀ (x - μ) / σ

        in the eigenvectors of W. v makes the mean variance 1. Without repeated images it is z.

        Args:
            sums: Over at least two images.
            directions: K; at most D are taken.
            shrinkage: s, above 0.

        Raises:
            ValueError, RuntimeError: if the sums have no such map, as false ones may not.
        """
        deviations = (sums.scatter.diagonal().clamp_min(0) / sums.count).sqrt() + FLOOR  # (D,)
        scale = torch.outer(deviations, deviations) * sums.count
        values, vectors = torch.linalg.eigh(sums.scatter / scale)
        kept = min(directions, len(values))
        principal = vectors.flip(1)[:, :kept] / (values.flip(0)[:kept].clamp_min(0) + RIDGE).sqrt()
        each = sums.count / max(sums.repeats, 1.0)
        within = each * (principal.T @ (sums.within / scale) @ principal)
        size = float(within.diagonal().mean())  # 0 where repeated images are copies
        if size > RIDGE:
            shrunk = (1 - shrinkage) * within + shrinkage * size * torch.eye(kept).double()
            spread, axes = torch.linalg.eigh(shrunk)
            principal = principal @ (axes / spread.clamp_min(RIDGE * size).sqrt())
        covariance = principal.T @ (sums.scatter / scale) @ principal
        principal = principal / covariance.diagonal().mean().sqrt()
        if not bool(principal.isfinite().all()):
            raise ValueError("the sums are of no features")
        return cls(sums.mean.float(), (principal / deviations[:, None]).float())

    def __call__(self, features: Tensor) -> Tensor:
        """Features (n, D) to directions (n, K) float32."""
        return (features.float() - self.mean) @ self.directions

    def arrays(self) -> dict[str, Tensor]:
        """As it travels and is kept."""
        return {"mean": self.mean, "directions": self.directions}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> Self:
        """The map that travelled or was kept."""
        return cls(arrays["mean"], arrays["directions"])
