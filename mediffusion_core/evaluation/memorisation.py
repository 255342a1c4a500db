"""Whether samples are copies of training images, by their nearest training images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.evaluation.prdc import distances

CHUNK = 256


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training images of each of n images, the nearest first."""

    distances: Tensor
    """Euclidean distances between features, (n, k)."""
    positions: Tensor
    """Positions of the training images, (n, k)."""


def nearest_neighbours(features: Tensor, training: Tensor, count: int) -> Neighbours:
    """The nearest training images of each image.

    Args:
        features: (n, D).
        training: Features (N, D) of training images.
        count: k; N where that is less.
    """
    training = training.double()
    found = [
        distances(part.double(), training).topk(min(count, len(training)), largest=False)
        for part in features.split(CHUNK)
    ]
    return Neighbours(
        torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
    )


def copying(samples: Tensor, held_out: Tensor) -> float:
    """Probability that a sample is nearer to the training images than a held-out image is.

    P(d < d') + P(d = d') / 2 for the distances d of a sample and d' of a held-out image to their
    nearest training images: the statistic of arXiv 2004.05675 without its division into cells. New
    images of the same distribution score 0.5, copies of training images 1, and images unlike any
    real one less than 0.5.

    Args:
        samples: Distances d (n,) of the samples.
        held_out: Distances d' (m,) of real images that were not trained on.
    """
    difference = held_out[None, :] - samples[:, None]  # (n, m)
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)
