"""Precision, recall, density and coverage of samples.

A set's manifold is the union of balls around its points. Each ball's radius is the distance to the
k-th nearest other point of the set. The package `prdc` computes the same with scikit-learn; its
latest version is of 2020, takes one k for all four figures and prints at each call.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Overlap:
    """Fidelity (precision, density) and diversity (recall, coverage) of samples.

    Density is 1 in expectation for equal distributions and may exceed 1; the others are in [0, 1].
    The figures of equal distributions depend on the number of images and on k: compare with the
    same figures of real images.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_overlap(
    samples: Tensor, real: Tensor, *, precision_neighbours: int = 3, coverage_neighbours: int = 5
) -> Overlap:
    """Improved precision and recall, density and coverage.

    Let r_k(x) be the distance of x to its k-th nearest other point of its own set. Precision is the
    share of samples y with |y - x| ≤ r_k(x) for some real x. Recall is the share of real x with
    |x - y| ≤ r_k(y) for some sample y (arXiv 1904.06991, equations 1 and 2). Density is
    1/(kM) Σ_y #{x: |y - x| ≤ r_k(x)}. Coverage is the share of real x with some sample within
    r_k(x) (arXiv 2002.09797, section 3). The default k are those of the papers.

    Args:
        samples: Features (M, D).
        real: Features (N, D).
        precision_neighbours: k of precision and recall.
        coverage_neighbours: k of density and coverage.

    Raises:
        ValueError: D differs, or a set has no k neighbours.
    """
    most = max(precision_neighbours, coverage_neighbours)
    if samples.ndim != 2 or real.ndim != 2 or samples.shape[1] != real.shape[1]:
        raise ValueError(
            f"features must be (M, D) and (N, D), got {tuple(samples.shape)}, {tuple(real.shape)}"
        )
    if min(len(samples), len(real)) <= most:
        raise ValueError(f"{most} neighbours need more points than {len(samples)}, {len(real)}")
    samples, real = samples.double(), real.double()
    between = distances(samples, real)  # (M, N)
    of_real = _radii(real, [precision_neighbours, coverage_neighbours])
    [of_samples] = _radii(samples, [precision_neighbours])
    inside = between <= of_real[1]  # (M, N)
    return Overlap(
        precision=float((between <= of_real[0]).any(dim=1).double().mean()),
        recall=float((between <= of_samples[:, None]).any(dim=0).double().mean()),
        density=float(inside.sum()) / (coverage_neighbours * len(samples)),
        coverage=float(inside.any(dim=0).double().mean()),
    )


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) of points (N, D) to points (M, D), exactly symmetric.

    The faster way through matrix products rounds |x - y| and |y - x| differently.
    """
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(points: Tensor, neighbours: list[int]) -> list[Tensor]:
    """Distance of each point to its k-th nearest other one, (N,), for each k."""
    others = distances(points, points).fill_diagonal_(torch.inf)
    return [others.kthvalue(k, dim=1).values for k in neighbours]
