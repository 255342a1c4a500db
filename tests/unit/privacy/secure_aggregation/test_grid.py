"""Whole numbers for masked sums: exact sums, bounded change by a unit, and the noise's law."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kstest, norm

from mediffusion_core.privacy.secure_aggregation.grid import SMOOTHING, STEPS, Grid, from_steps
from mediffusion_core.settings.privacy import LARGEST_SHARED_NOISE

Real = NDArray[np.float64]


@pytest.mark.parametrize("counted", [1, 3])
def test_the_sum_over_the_counted_sites_has_the_noise_of_the_plan(counted: int) -> None:
    grid = Grid(max_grad_norm=0.5, noise_multiplier=2.0, counted=counted)
    parts = [torch.full((40_000,), 1.25 * site) for site in range(counted)]
    total = from_steps(np.sum([grid.noised(part) for part in parts], axis=0, dtype=np.uint64), 0.5)
    expected = 1.25 * sum(range(counted))
    assert kstest((total - expected) / (2.0 * 0.5), "norm").pvalue > 1e-4


def test_noise_that_would_wrap_around_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise_multiplier=1e\+14 does not fit"):
        Grid(max_grad_norm=1.0, noise_multiplier=1e14, counted=3).noised(torch.zeros(8))


def test_the_largest_noise_of_the_settings_does_not_wrap_around() -> None:
    grid = Grid(max_grad_norm=1.0, noise_multiplier=LARGEST_SHARED_NOISE, counted=3)
    parts = [grid.noised(torch.zeros(40_000)) for _ in range(3)]
    total = from_steps(np.sum(parts, axis=0, dtype=np.uint64), 1.0)
    assert kstest(total / LARGEST_SHARED_NOISE, "norm").pvalue > 1e-4


def test_sums_are_exact_but_for_half_a_step_a_site() -> None:
    grid = Grid(max_grad_norm=1.0, noise_multiplier=1e-9, counted=1)
    values = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    found = from_steps(grid.noised(values) + grid.noised(-3 * values), 1.0)
    # Without the smoothing's noise of four steps, each site adds half a step.
    assert np.abs(found + 2 * values.numpy()).max() < (1 + 2 * 9 * SMOOTHING) / STEPS


def test_one_unit_changes_the_whole_numbers_by_no_more_than_the_noise_is_made_for() -> None:
    generator, dimensions = np.random.default_rng(1), 400
    worst = 0.0
    for _ in range(200):
        rest, part = generator.normal(size=(2, dimensions)) * 30
        part /= np.linalg.norm(part)
        before, after = np.rint(rest * STEPS), np.rint((rest + part) * STEPS)
        worst = max(worst, float(np.linalg.norm(after - before)))
    grid = Grid(max_grad_norm=1.0, noise_multiplier=1.0, counted=1)
    assert worst <= math.sqrt(grid.deviation(dimensions) ** 2 - SMOOTHING**2)


def rounded_normal(deviation: float, reach: int) -> Real:
    """Probabilities of round(N(0, s²)) from -reach to reach."""
    edges = np.arange(-reach, reach + 2) - 0.5
    # Survival functions on the right, so that small probabilities keep their digits.
    right = norm.sf(edges[reach + 1 : -1], scale=deviation) - norm.sf(
        edges[reach + 2 :], scale=deviation
    )
    middle = 1 - 2 * norm.sf(0.5, scale=deviation)
    return np.concatenate([right[::-1], [middle], right])


def smoothed(variance: float, sites: int, at: Real) -> Real:
    """The density of N(0, v) plus so many uniform numbers of width 1, by their quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    points, masses = np.zeros(1), np.ones(1)
    for _ in range(sites):
        points = (points[:, None] + nodes / 2).ravel()
        masses = (masses[:, None] * weights / 2).ravel()
    shifted: Real = at[:, None] - points
    return norm.pdf(shifted, scale=math.sqrt(variance)) @ masses


@pytest.mark.parametrize(("deviation", "sites"), [(0.5, 2), (0.7, 3), (1.0, 2)])
def test_a_sum_of_rounded_noise_has_the_smoothed_density_within_the_bound(
    deviation: float, sites: int
) -> None:
    """Step 1 of the module's proof, at noise so small that the bound is not 0."""
    reach = 12
    one = rounded_normal(deviation, reach)
    total = one
    for _ in range(sites - 1):
        total = np.convolve(total, one)
    middle = len(total) // 2
    near = np.arange(-4, 5)
    found = total[middle + near]
    expected = smoothed(sites * deviation**2, sites, near.astype(float))
    bound = math.prod(
        1 + 2.01 * math.exp(-2 * math.pi**2 * deviation**2 * j / (j + 1)) for j in range(1, sites)
    )
    ratio = found / expected
    assert ratio.max() <= bound + 1e-9 and ratio.min() >= 2 - bound - 1e-9
    assert np.abs(ratio - 1).max() > 1e-6  # it is not that the bound is never needed


@pytest.mark.parametrize("width", [0.4, 0.7])
def test_the_proportions_of_the_second_step_sum_to_one_within_the_bound(width: float) -> None:
    """Step 2: Σ_k (φ_{η²} * B * B)(k - y) at several y."""
    bound = 2.01 * math.exp(-2 * math.pi**2 * width**2)
    for y in (0.0, 0.2, 0.5):
        total = smoothed(width**2, 2, np.arange(-10, 11) - y).sum()
        assert abs(total - 1) <= bound


def test_numbers_wrap_around_beyond_no_range_that_sums_reach() -> None:
    units, sites = 2.0**36, 4
    largest = sites * (units * STEPS + 9 * Grid(1.0, 1e4, 1).deviation(10**6))
    assert largest < 2.0**63
