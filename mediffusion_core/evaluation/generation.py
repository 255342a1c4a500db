"""Distances between sets of features and between images: FID, KID and PSNR."""

from collections.abc import Sequence

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features.

    |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½) (Heusel et al. 2017, arXiv 1706.08500, eq. 6),
    with unbiased covariances. The mixed trace is the sum of the singular values of A Bᵀ, where
    Σ_a = AᵀA and Σ_b = BᵀB: no square root of a singular D x D matrix is taken, so fewer samples
    than features cost neither accuracy nor time. The figure itself stays biased upwards for few
    samples; compare only figures of equal numbers of samples.

    Args:
        a: (N, D), N at least 2.
        b: (M, D), M at least 2.

    Returns:
        The squared distance, not negative, in the features' units squared.

    Raises:
        ValueError: fewer than 2 samples, or D differs.
    """
    _check(a, b)
    mean_a, factor_a = _moments(a)
    mean_b, factor_b = _moments(b)
    mixed = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    spread = factor_a.square().sum() + factor_b.square().sum()
    distance = (mean_a - mean_b).square().sum() + spread - 2.0 * mixed
    return max(0.0, float(distance))


def kernel_distance(
    a: Tensor, b: Tensor, subset_size: int = 100, num_subsets: int = 50, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance: unbiased squared MMD under k(x, y) = (x·y / D + 1)³, over random subsets.

    Bińkowski et al. 2018, arXiv 1801.01401, section 4. Unlike the Fréchet distance its mean does
    not depend on the number of samples; it can be negative.

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
    _check(a, b)
    a, b = a.double(), b.double()
    size = min(subset_size, len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack(
        [
            _squared_mmd(
                a[torch.randperm(len(a), generator=generator)[:size]],
                b[torch.randperm(len(b), generator=generator)[:size]],
            )
            for _ in range(num_subsets)
        ]
    )
    return float(values.mean()), float(values.std(correction=0))


def halves_by_group(groups: Sequence[str], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two equally large sets of images that share no patient.

    The distance of one to the other is the floor: what a perfect generator would score with as
    many samples. Two images of one patient, one in each set, would make it look smaller.

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


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image.

    Args:
        images: (B, C, H, W) in [0, 1].
        reference: (B, C, H, W) in [0, 1].

    Returns:
        (B,) in dB; inf where an image equals its reference.
    """
    return -10.0 * (images - reference).square().mean(dim=(1, 2, 3)).log10()


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


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and a factor F (min(N, D), D) with FᵀF the unbiased covariance."""
    features = features.double()
    mean = features.mean(dim=0)
    factor = (features - mean) / (len(features) - 1) ** 0.5
    if factor.shape[0] > factor.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return mean, factor


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    k_xx, k_yy, k_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()
    return within / (n * (n - 1)) - 2.0 * k_xy.mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1.0) ** 3
