"""ε against closed forms, a slow composition of our own, and laws of every accountant."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.special import ndtr, ndtri

from mediffusion_core.privacy.accounting import accountant
from mediffusion_core.privacy.accounting.accountant import (
    Charge,
    epsilon,
    largest_true_positive_rate,
    merged,
)

DELTA = 1e-5


def gaussian_delta(mu: float, eps: float) -> float:
    """δ of the Gaussian mechanism with sensitivity over noise μ (arXiv 1805.06530, theorem 8)."""
    return float(ndtr(mu / 2 - eps / mu) - math.exp(eps) * ndtr(-mu / 2 - eps / mu))


def gaussian_epsilon(mu: float, delta: float) -> float:
    return float(brentq(lambda eps: gaussian_delta(mu, eps) - delta, 0, 500))


def sampled_delta(q: float, sigma: float, eps: float) -> float:
    """δ of one Poisson-sampled Gaussian step: the mass of the mixture above where it pays."""
    above = sigma**2 * math.log((math.exp(eps) - 1 + q) / q) + 0.5
    mixture = (1 - q) * ndtr(-above / sigma) + q * ndtr(-(above - 1) / sigma)
    return float(mixture - math.exp(eps) * ndtr(-above / sigma))


def slow_epsilon(charges: Sequence[Charge], delta: float, mesh: float, up: bool) -> float:
    """ε by losses put on a grid, rounded up or down, and convolved one step after the other."""
    whole, start = np.ones(1), 0
    for charge in charges:
        q, sigma = charge.sample_rate, charge.noise_multiplier
        x = np.linspace(-9 * sigma, 9 * sigma + 1, 200_001)
        mass = (1 - q) * np.diff(ndtr(x / sigma)) + q * np.diff(ndtr((x - 1) / sigma))
        edge = x[1:] if up else x[:-1]  # the loss rises with x
        loss = np.log1p(q * np.expm1((2 * edge - 1) / (2 * sigma**2)))
        bins = (np.ceil if up else np.floor)(loss / mesh).astype(int)
        one = np.bincount(bins - bins.min(), weights=mass)
        for _ in range(charge.steps):
            whole, start = fftconvolve(whole, one), start + int(bins.min())
    losses = (start + np.arange(len(whole))) * mesh

    def missing(eps: float) -> float:
        kept = losses > eps
        return float((whole[kept] * -np.expm1(eps - losses[kept])).sum()) - delta

    return float(brentq(missing, 0, 100))


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (20.0, 10), (0.5, 1), (30.0, 900)])
def test_without_sampling_it_is_the_gaussian_mechanism(sigma: float, steps: int) -> None:
    exact = gaussian_epsilon(math.sqrt(steps) / sigma, DELTA)
    found = epsilon([Charge(1.0, sigma, steps)], DELTA)
    assert exact <= found <= exact + 0.002


@pytest.mark.parametrize(("q", "sigma"), [(0.5, 1.0), (0.01, 0.6), (0.1, 0.4)])
def test_one_sampled_step_has_a_closed_form(q: float, sigma: float) -> None:
    exact = brentq(lambda eps: sampled_delta(q, sigma, eps) - DELTA, 1e-6, 100)
    found = epsilon([Charge(q, sigma, 1)], DELTA)
    assert exact <= found <= exact + 0.002


@pytest.mark.parametrize(
    "charges",
    [
        [Charge(0.1, 1.0, 12)],
        [Charge(0.3, 1.5, 4), Charge(0.05, 0.7, 6), Charge(1.0, 8.0, 2)],
        [Charge(0.02, 0.8, 5), Charge(0.02, 0.8, 5), Charge(0.5, 3.0, 3)],
    ],
)
def test_compositions_agree_with_a_slow_reference(charges: list[Charge]) -> None:
    low = slow_epsilon(charges, DELTA, 2e-4, up=False)
    high = slow_epsilon(charges, DELTA, 2e-4, up=True)
    assert high - low < 0.02
    assert low <= epsilon(charges, DELTA) <= high + 0.025


def test_a_known_value() -> None:
    """The tutorials' MNIST run: 60 epochs of 60,000 in lots of 256 with noise 1.1."""
    run = Charge(256 / 60_000, 1.1, 14_062)
    rdp = accountant._rdp_epsilon((run,), DELTA)
    assert rdp == pytest.approx(2.60, abs=0.01)
    assert epsilon([run], DELTA) == pytest.approx(2.39, abs=0.01)


@pytest.mark.parametrize(
    "charge", [Charge(0.01, 1.0, 300), Charge(1.0, 3.0, 5), Charge(0.2, 5.0, 100)]
)
def test_the_tighter_accountant_is_reported(charge: Charge) -> None:
    pld = accountant._pld_epsilon((charge,), DELTA)
    rdp = accountant._rdp_epsilon((charge,), DELTA)
    assert pld <= rdp
    assert epsilon([charge], DELTA) == pld


@pytest.mark.parametrize(
    ("charge", "finer"),
    [
        (Charge(0.01, 0.5, 4000), 25.638),
        (Charge(0.01, 0.6, 20_000), 35.209),
        (Charge(0.004, 0.5, 50_000), 41.191),
        (Charge(0.001, 20.0, 100_000), 0.0453),
        (Charge(0.001, 0.5, 1_000_000), 52.341),
        (Charge(0.01, 1.0, 1_000_000), 139.035),
    ],
)
def test_long_compositions_are_bounded_tightly(charge: Charge, finer: float) -> None:
    """The Rényi bound is 8 to 13 % larger. `finer` is of a finer grid."""
    assert 0.998 * finer <= epsilon([charge], DELTA) <= 1.001 * finer


def test_where_one_accountant_gives_up_the_other_holds() -> None:
    charge = Charge(0.01, 0.01, 1000)
    rdp = accountant._rdp_epsilon((charge,), DELTA)
    assert 1e4 < epsilon([charge], DELTA) == rdp < math.inf


def test_more_steps_a_higher_rate_and_less_noise_cost_more() -> None:
    grid = {
        (rate, noise, steps): epsilon([Charge(rate, noise, steps)], DELTA)
        for rate, noise, steps in product((0.1, 1.0), (4.0, 0.8), (1, 9))
    }
    for low, high in product(grid, grid):
        if low[0] <= high[0] and low[1] >= high[1] and low[2] <= high[2]:
            assert grid[low] <= grid[high]


@given(
    st.lists(
        st.builds(
            Charge, st.sampled_from([0.1, 1.0]), st.sampled_from([0.7, 6.0]), st.integers(1, 12)
        )
    ),
    st.randoms(use_true_random=False),
)
def test_order_and_division_into_charges_do_not_matter(
    charges: list[Charge], chance: Random
) -> None:
    single = [replace(charge, steps=1) for charge in charges for _ in range(charge.steps)]
    chance.shuffle(single)
    assert merged(single) == merged(charges)
    assert sum(part.steps for part in merged(charges)) == len(single)


def test_rounding_is_not_trusted_at_a_tiny_delta() -> None:
    charge = Charge(0.1, 2.0, 10)
    assert epsilon([charge], 1e-9) == accountant._rdp_epsilon((charge,), 1e-9)


def test_nothing_spent_and_nothing_hidden() -> None:
    assert epsilon([], DELTA) == 0
    assert epsilon([Charge(0.01, 0.0, 1)], DELTA) == math.inf
    assert epsilon([Charge(0.01, 5.0, 10), Charge(1.0, 0.0, 1)], DELTA) == math.inf


@pytest.mark.parametrize(
    "wrong",
    [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.5, -1.0, 1), (0.5, math.nan, 1), (0.5, math.inf, 1),
     (0.5, 1.0, 0), (0.5, 1.0, 1.5), (0.5, 1.0, True), (math.nan, 1.0, 1)],
)  # fmt: skip
def test_a_charge_out_of_range_is_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError):
        Charge(*wrong)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([Charge(0.1, 1.0, 1)], delta)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 60), (8.0, 20)])
def test_no_attack_is_stronger_than_the_composition_allows(noise: float, steps: int) -> None:
    """For the Gaussian mechanism the best test is known (Neyman and Pearson): Φ(Φ⁻¹(α) + μ)."""
    rate, shift = 0.01, math.sqrt(steps) / noise
    exact = float(ndtr(ndtri(rate) + shift))
    found = largest_true_positive_rate([Charge(1.0, noise, steps)], rate)
    assert exact <= found <= exact + 0.03


def test_without_a_charge_an_attack_finds_as_many_members_as_others() -> None:
    assert largest_true_positive_rate([], 0.01) == pytest.approx(0.01, abs=1e-5)
    assert largest_true_positive_rate([Charge(1.0, 0.0, 1)], 0.01) == 1
