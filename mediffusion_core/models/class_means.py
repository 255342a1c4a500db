"""A classifier of whitened features by the means of the classes, which sums over sites give.

Whitened features of different patients scatter about as far in all directions
(`models.whitening`), so that the distances to the means of the classes classify them: linear
discriminant analysis (Fisher, 1936) whose covariance comes from all images, labelled or not. Means
of few images are drawn towards that of all labelled ones (James and Stein, 1961).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mediffusion_core.models.whitening import FeatureSums, Whitening


@dataclass(frozen=True)
class ClassSums:
    """Sums over the features of a site's labelled images, or of all sites'; C classes."""

    known: Tensor
    """Images for which it is known whether the class is present, (C,) float64."""
    positives: Tensor
    """Images in which it is present, (C,) float64."""
    known_sums: Tensor
    """Sum of the features of the former, (C, D) float64."""
    positive_sums: Tensor
    """Sum of the features of the latter, (C, D) float64."""

    @classmethod
    def of(cls, features: Tensor, targets: Tensor) -> Self:
        """Sums over features (n, D) with targets (n, C) in {0, 1}, NaN where a label is missing."""
        known, positive = (~targets.isnan()).double(), (targets == 1).double()  # (n, C)
        features = features.double()
        return cls(known.sum(0), positive.sum(0), known.T @ features, positive.T @ features)

    @classmethod
    def pooled(cls, parts: Sequence[Self]) -> Self:
        """The sums over all sites' images."""
        names = cls.__dataclass_fields__
        return cls(*(torch.stack([getattr(part, name) for part in parts]).sum(0) for name in names))

    def arrays(self) -> dict[str, Tensor]:
        """As they travel, in float32."""
        return {name: getattr(self, name).float() for name in self.__dataclass_fields__}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> Self:
        """The sums that travelled, among other arrays."""
        return cls(*(arrays[name].double() for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class ClassMeans:
    """A linear map from K whitened features to the logits of C classes."""

    weight: Tensor
    """(K, C) float32."""
    bias: Tensor
    """(C,) float32."""

    @classmethod
    def of(
        cls, classes: ClassSums, sums: FeatureSums, whitening: Whitening, multi_label: bool
    ) -> Self:
        """The classifier of all sites.

        Args:
            classes: Over the labelled images.
            sums: Over all images.
            whitening: Made from `sums`.
            multi_label: Whether the classes are independent. Then each one has a classifier of two
                classes, its presence and its absence.
        """
        directions = whitening.directions.double()
        covariance = directions.T @ (sums.scatter / sums.count) @ directions  # (K, K)
        shift = whitening.mean.double()

        def means(totals: Tensor, counts: Tensor) -> Tensor:
            return (totals / counts.clamp_min(1)[:, None] - shift) @ directions  # (C, K)

        present = means(classes.positive_sums, classes.positives)
        if not multi_label:
            weight, bias = _discriminant(present, classes.positives, covariance)
            return cls(weight.float(), bias.float())
        without = classes.known - classes.positives
        absent = means(classes.known_sums - classes.positive_sums, without)
        pairs = [
            _discriminant(torch.stack(both), torch.stack(counts), covariance)
            for *both, counts in zip(
                absent, present, zip(without, classes.positives, strict=True), strict=True
            )
        ]
        return cls(
            torch.stack([weight[:, 1] - weight[:, 0] for weight, _ in pairs], dim=1).float(),
            torch.stack([bias[1] - bias[0] for _, bias in pairs]).float(),
        )

    def __call__(self, whitened: Tensor) -> Tensor:
        """Whitened features (n, K) to logits (n, C)."""
        return whitened @ self.weight + self.bias

    def arrays(self) -> dict[str, Tensor]:
        """As it travels and is kept."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> Self:
        """The classifier that travelled, among other arrays."""
        return cls(arrays["weight"], arrays["bias"])


def _discriminant(means: Tensor, counts: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (K, M) and biases (M,) of the logits of M exclusive classes.

    With means m_c of n_c images, their mean m over all labelled images, the covariance S of all
    images, and priors π_c = (n_c + 1) / (n + M):

        d_c = max(0, 1 - tr(S) / (n_c ‖m_c - m‖²)) (m_c - m)
        logit_c(x) = (d_c · (x - m) - ‖d_c‖² / 2) / v + log π_c

    v = Σ π_c d_cᵀ W d_c / Σ π_c ‖d_c‖² is the variance within classes along the means, with W = S -
    Σ π_c d_c d_cᵀ. So the probabilities are calibrated, and no further labelled images are needed.
    The labelled images may be those of some sites alone: m need not be the mean of all images.

    Args:
        means: (M, K); that of a class without images means nothing.
        counts: n_c (M,).
        covariance: S (K, K).
    """
    priors = (counts + 1) / (counts.sum() + len(counts))
    centre = (counts @ means) / counts.sum().clamp_min(1)  # (K,)
    apart = means - centre
    noise = covariance.trace() / (counts * apart.square().sum(dim=1)).clamp_min(1e-12)
    apart = apart * (1 - noise).clamp_min(0)[:, None]
    squares = apart.square().sum(dim=1)  # (M,)
    between = (priors * squares).sum()
    if not bool(between > 0):
        return torch.zeros_like(apart.T), priors.log()
    within = covariance - (apart.T * priors) @ apart
    along = torch.einsum("c,ck,kl,cl->", priors, apart, within, apart)
    # At least a hundredth of the variance: the means of few images lie too far apart.
    variance = (along / between).clamp_min(0.01 * covariance.trace() / len(covariance))
    return apart.T / variance, priors.log() - (squares / 2 + apart @ centre) / variance
