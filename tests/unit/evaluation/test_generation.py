"""FID and KID against closed forms and slow references."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.evaluation import (
    diversity,
    frechet_distance,
    halves_by_group,
    kernel_distance,
)


def gaussian(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: Tensor, covariance: Tensor, n: int, seed: int) -> Tensor:
    """Samples whose empirical mean and covariance are exactly the ones given."""
    x = gaussian(n, len(mean), seed)
    x = x - x.mean(dim=0)
    whitener = torch.linalg.inv(torch.linalg.cholesky(x.T.cov()))
    return x @ whitener.T @ torch.linalg.cholesky(covariance).T + mean


def frechet_by_sqrtm(a: Tensor, b: Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    sd_a, sd_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 1.0, 0.5]).double()
    mean_a, mean_b = torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.0]).double()
    a = with_moments(mean_a, sd_a.square().diag(), 50, seed=0)
    b = with_moments(mean_b, sd_b.square().diag(), 70, seed=1)
    # |Δμ|² = 5, Σ (σ_a - σ_b)² = 4 + 1 + 0.
    assert frechet_distance(a, b) == pytest.approx(10.0)


def test_frechet_distance_of_correlated_plane_gaussians_is_the_closed_form() -> None:
    # In two dimensions tr √M = √(tr M + 2 √det M).
    s = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double()
    t = torch.tensor([[1.0, -0.5], [-0.5, 3.0]]).double()
    root = ((s @ t).trace() + 2 * (s @ t).det().sqrt()).sqrt()
    expected = float((s + t).trace() - 2 * root)
    zero = torch.zeros(2).double()
    a, b = with_moments(zero, s, 30, seed=2), with_moments(zero, t, 40, seed=3)
    assert frechet_distance(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 12), (40, 200, 60), (20, 15, 60)])
def test_frechet_distance_equals_the_matrix_square_root(n: int, m: int, d: int) -> None:
    mixing = gaussian(d, d, seed=4)
    a, b = gaussian(n, d, seed=5) @ mixing, 0.5 + gaussian(m, d, seed=6)
    # sqrtm of a singular matrix is good to about the root of the machine's precision.
    assert frechet_distance(a, b) == pytest.approx(frechet_by_sqrtm(a, b), rel=1e-4)


@pytest.mark.parametrize(("n", "d"), [(200, 10), (10, 200)])
def test_frechet_distance_is_zero_on_itself_symmetric_and_blind_to_rotation(n: int, d: int) -> None:
    a, b = gaussian(n, d, seed=7), 1.5 * gaussian(n + 3, d, seed=8)
    rotation = torch.linalg.qr(gaussian(d, d, seed=9)).Q
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b))


def test_frechet_distance_survives_a_large_offset_in_float32() -> None:
    a, b = gaussian(100, 5, seed=10), gaussian(100, 5, seed=11)
    shifted = frechet_distance((a + 1000.0).float(), (b + 1000.0).float())
    assert shifted == pytest.approx(frechet_distance(a, b), abs=1e-3)


def unbiased_mmd(a: Tensor, b: Tensor) -> float:
    """The squared MMD of two equally large sets, pair by pair."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    n = len(a)
    apart = [(i, j) for i in range(n) for j in range(n) if i != j]
    within = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in apart)
    between = sum(kernel(x, y) for x in a for y in b)
    return within / len(apart) - 2 * between / n**2


def test_kernel_distance_on_one_whole_subset_is_the_unbiased_mmd() -> None:
    a, b = gaussian(60, 16, seed=12), 0.3 + gaussian(60, 16, seed=13)
    mean, std = kernel_distance(a, b, subset_size=60, num_subsets=3)
    # A subset of everything is everything in another order.
    assert mean == pytest.approx(unbiased_mmd(a, b))
    assert std == pytest.approx(0.0, abs=1e-9)


def test_kernel_distance_subsets_average_to_the_distance_of_the_whole_sets() -> None:
    a, b = gaussian(200, 8, seed=14), 0.5 + gaussian(200, 8, seed=15)
    mean, std = kernel_distance(a, b, subset_size=50, num_subsets=400)
    assert std > 0.0
    assert mean == pytest.approx(unbiased_mmd(a, b), abs=4 * std / 400**0.5)


def test_kernel_distance_is_unbiased_on_equal_distributions() -> None:
    values = torch.tensor(
        [
            kernel_distance(
                gaussian(40, 4, 2 * seed), gaussian(40, 4, 2 * seed + 1), subset_size=40
            )[0]
            for seed in range(200)
        ]
    )
    assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5
    assert (values < 0).any()


def test_kernel_distance_is_seeded_and_takes_the_smaller_set_whole() -> None:
    a, b = gaussian(30, 4, seed=16), 1.0 + gaussian(80, 4, seed=17)
    assert kernel_distance(a, b, seed=1) == kernel_distance(a, b, subset_size=30, seed=1)
    assert kernel_distance(a, b, seed=1) != kernel_distance(a, b, seed=2)


def test_distances_leave_the_global_generator_alone() -> None:
    a, b = gaussian(30, 4, seed=18), gaussian(30, 4, seed=19)
    before = torch.get_rng_state()
    frechet_distance(a, b)
    kernel_distance(a, b)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(1, 40), st.integers(0, 99))
def test_the_halves_of_a_floor_share_no_patient(ids: list[int], count: int, seed: int) -> None:
    assume(len(set(ids)) > 1)
    groups = [f"patient-{one}" for one in ids]
    first, second = halves_by_group(groups, count, seed)
    assert 1 <= len(first) == len(second) <= count
    assert len({*first.tolist(), *second.tolist()}) == 2 * len(first)
    assert not {groups[one] for one in first} & {groups[one] for one in second}
    again = halves_by_group(groups, count, seed)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


def test_halves_use_all_that_fit() -> None:
    first, second = halves_by_group([str(one) for one in range(101)], 1000, seed=5)
    assert len(first) == len(second) == 50


def test_too_few_samples_are_refused() -> None:
    one, many = torch.zeros(1, 3), torch.zeros(5, 3)
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance(one, many)
    with pytest.raises(ValueError, match="at least 2 samples"):
        kernel_distance(many, one)
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        frechet_distance(many, torch.zeros(5, 4))


def test_diversity_is_1_for_equally_different_samples_and_0_for_equal_ones() -> None:
    real = gaussian(200, 8, seed=0)
    assert diversity(gaussian(200, 8, seed=1) + 3, real) == pytest.approx(1.0, rel=0.05)
    assert diversity(0.25 * gaussian(200, 8, seed=1), real) == pytest.approx(0.25, rel=0.05)
    assert diversity(real[:1].expand(10, -1), real) == 0
