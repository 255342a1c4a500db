"""The figures of one set of images."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from mediffusion_core.evaluation.classification import class_scores, exact_auc, macro
from mediffusion_core.evaluation.generation import frechet_distance, kernel_distance
from mediffusion_core.evaluation.jackknife import Interval, half_sample_intervals
from mediffusion_core.evaluation.memorisation import Neighbours, copying, nearest_neighbours
from mediffusion_core.evaluation.prdc import manifold_overlap
from mediffusion_core.inference.joint_model import TrainedModel

SHARES = ("precision", "recall", "coverage")
SHOWN_NEIGHBOURS = 3


@dataclass(frozen=True)
class RealImages:
    """Features of the real images that sets are compared with."""

    reference: Tensor
    """(n, D), of test images."""
    reference_groups: tuple[str, ...]
    floor: Tensor
    """(n, D), of equally many test images of other patients."""
    floor_groups: tuple[str, ...]
    training: Tensor
    """(N, D), of training images."""

    @property
    def floor_distances(self) -> Tensor:
        """Distance of each image of the floor to its nearest training image, (n,)."""
        return nearest_neighbours(self.floor, self.training, 1).distances[:, 0]


@dataclass(frozen=True)
class Measured:
    """The figures of one set as JSON values, and the nearest training images of its images."""

    figures: dict[str, Any]
    neighbours: Neighbours


def measure(
    features: Tensor, groups: Sequence[str] | None, real: RealImages, num_draws: int, seed: int
) -> Measured:
    """Distances to the reference with intervals, and distances to the training images.

    Args:
        features: Features of the set, (n, D).
        groups: Patient of each image; None if every image is independent, as samples are.
        real: Features of real images.
        num_draws: Half-samples for the intervals.
        seed: Seed of the half-samples.
    """
    names = [str(number) for number in range(len(features))] if groups is None else groups
    intervals = half_sample_intervals(
        _distances, features, real.reference, (names, real.reference_groups), num_draws, seed
    )
    neighbours = nearest_neighbours(features, real.training, SHOWN_NEIGHBOURS)
    nearest = neighbours.distances[:, 0]
    figures = {
        **{name: _within_bounds(name, interval) for name, interval in intervals.items()},
        "nearest_training_distance": float(nearest.median()),
        "copying": copying(nearest, real.floor_distances),
    }
    return Measured(figures, neighbours)


def label_agreement(model: TrainedModel, images: Tensor, labels: Tensor) -> float:
    """Macro AUC of the model's logits of images (n, C, H, W) for the requested labels."""
    logits = model.logits(model.encode(images))
    return macro(exact_auc(class_scores(logits, model.multi_label), labels))


def _within_bounds(name: str, interval: Interval) -> dict[str, float]:
    """The interval clipped to possible values: shares to [0, 1], all but KID to at least 0."""
    lowest = -math.inf if name == "kid" else 0.0
    highest = 1.0 if name in SHARES else math.inf
    ends = {"low": interval.low, "high": interval.high}
    clipped = {end: min(max(value, lowest), highest) for end, value in ends.items()}
    return {"value": interval.value, **clipped}


def _distances(samples: Tensor, real: Tensor) -> dict[str, float]:
    size = min(len(samples), len(real))
    kid, _ = kernel_distance(samples, real, subset_size=size, num_subsets=1)
    overlap = manifold_overlap(samples, real)
    return {"fid": frechet_distance(samples, real), "kid": kid, **asdict(overlap)}
