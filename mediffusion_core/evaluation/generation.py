"""FID and KID, distances between two sets of features, by torchmetrics.

torchmetrics takes 3 seconds to import, so the functions that need it import it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _GivenFeatures(nn.Identity):
    """Stands where torchmetrics expects a feature extractor; its input are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance (FID) of the Gaussians fitted to two sets of features.

    |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½) (Heusel et al. 2017, arXiv 1706.08500, eq. 6),
    with unbiased covariances. It is biased upwards for few samples: compare only figures of equal
    numbers of samples.

    Args:
        a: (N, D), N at least 2.
        b: (M, D), M at least 2.

    Returns:
        The squared distance, not negative, in the features' units squared.

    Raises:
        ValueError: fewer than 2 samples, or D differs.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check(a, b)
    a, b = a.double(), b.double()
    if len(a) + len(b) < a.shape[1]:
        # The distance lies in the span of both sets. The eigenvalues of a smaller matrix are
        # found sooner: 0.02 s instead of 0.9 s for 100 samples a set and D = 1280.
        basis = torch.linalg.qr(torch.cat([a, b]).T).Q  # (D, N + M)
        a, b = a @ basis, b @ basis
    metric = FrechetInceptionDistance(_GivenFeatures(a.shape[1]))
    metric.update(a, real=True)
    metric.update(b, real=False)
    return max(0.0, float(metric.compute()))


def kernel_distance(
    a: Tensor, b: Tensor, subset_size: int = 100, num_subsets: int = 50, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance (KID): squared MMD under k(x, y) = (x·y / D + 1)³, over random subsets.

    Bińkowski et al. 2018, arXiv 1801.01401, section 4. Each subset's MMD is unbiased: unlike the
    Fréchet distance the mean does not depend on the number of samples, and it can be negative. The
    subsets are drawn here, since torchmetrics draws them from PyTorch's global generator.

    Args:
        a: (N, D), N at least 2.
        b: (M, D), M at least 2.
        subset_size: samples of each set in a subset; the smaller set's size where that is less.
        num_subsets: subsets drawn, without replacement within each.
        seed: of the draws.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: fewer than 2 samples, or D differs.
    """
    from torchmetrics.image.kid import poly_mmd

    _check(a, b)
    a, b = a.double(), b.double()
    size = min(subset_size, len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack(
        [
            poly_mmd(
                a[torch.randperm(len(a), generator=generator)[:size]],
                b[torch.randperm(len(b), generator=generator)[:size]],
            )
            for _ in range(num_subsets)
        ]
    )
    return float(values.mean()), float(values.std(correction=0))


def diversity(samples: Tensor, real: Tensor) -> float:
    """Mean distance of two samples, divided by that of two real images; 0 if all samples are equal.

    Blur moves all samples and narrows them a little, so that recall and coverage are near 0 for
    reconstructions of real images too; this ratio is not.

    Args:
        samples: Features (N, D), N at least 2.
        real: Features (M, D), M at least 2.

    Raises:
        ValueError: fewer than 2 samples, or D differs.
    """
    _check(samples, real)
    among_samples, among_real = (torch.pdist(one.double()).mean() for one in (samples, real))
    return float(among_samples / among_real)


def halves_by_group(groups: Sequence[str], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two equally large sets of images that share no patient.

    The distance between the two is the floor: a perfect generator scores it with as many samples.
    A patient with images in both sets would lower it.

    Args:
        groups: Patient or lesion of each of N images, at least two different ones.
        count: Images a set at most.
        seed: Draws the patients' order.

    Returns:
        Positions of the two sets, both (n,), n ≥ 1.
    """
    names = sorted(set(groups))
    generator = torch.Generator().manual_seed(seed)
    order = {names[place]: rank for rank, place in enumerate(_permutation(len(names), generator))}
    positions = _permutation(len(groups), generator)
    sides = [[place for place in positions if order[groups[place]] % 2 == side] for side in (0, 1)]
    size = min(count, *map(len, sides))
    return torch.tensor(sides[0][:size]), torch.tensor(sides[1][:size])


def _permutation(count: int, generator: torch.Generator) -> list[int]:
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features must be (N, D) and (M, D), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if min(len(a), len(b)) < 2:
        raise ValueError(f"distances need at least 2 samples a set, got {len(a)} and {len(b)}")
