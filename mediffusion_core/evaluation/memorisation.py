"""Whether samples are copies of training images: the training images nearest to them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.evaluation.manifolds import distances

CHUNK = 256


@dataclass(frozen=True)
class Neighbours:
    """The k training images nearest to each of n images, the nearest first."""

    distances: Tensor
    """Euclidean, between features, (n, k)."""
    positions: Tensor
    """Of the training images, (n, k)."""


def nearest_neighbours(features: Tensor, training: Tensor, count: int) -> Neighbours:
    """The nearest training images.

    Args:
        features: (n, D).
        training: (N, D).
        count: k; all where there are fewer.
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
    """How often a sample is nearer to the training images than a real image that is none of them.

    P(d < d') + P(d = d') / 2 for the distances d of a sample and d' of a held-out image to their
    nearest training image: the statistic of arXiv 2004.05675, without its cells. 0.5 is
    what new images of the same kind score, 1 a model that only copies, and less than 0.5 one whose
    samples are unlike any real image.

    Args:
        samples: d (n,).
        held_out: d' (m,).
    """
    difference = held_out[None, :] - samples[:, None]  # (n, m)
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)
