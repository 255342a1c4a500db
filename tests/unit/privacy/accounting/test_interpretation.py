"""μ of Gaussian DP and ε of groups, against closed forms."""

import math

import pytest
from scipy.special import ndtr

from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.accounting.interpretation import (
    gaussian_delta,
    gaussian_mu,
    group_epsilon,
)

DELTA = 1e-5


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 1), (3.0, 25)])
def test_mu_without_sampling_is_that_of_the_gaussian_mechanism(noise: float, steps: int) -> None:
    exact = math.sqrt(steps) / noise
    found = gaussian_mu([Charge(1.0, noise, steps)])
    assert exact * (1 - 1e-3) <= found <= exact * 1.02


def test_delta_is_the_closed_form() -> None:
    for mu, spent in ((0.5, 0.2), (2.0, 3.0), (1.0, 0.0)):
        exact = ndtr(mu / 2 - spent / mu) - math.exp(spent) * ndtr(-mu / 2 - spent / mu)
        assert gaussian_delta(mu, spent) == pytest.approx(exact, rel=1e-9)
    assert 0 <= gaussian_delta(0.01, 60.0) < 1e-300


def test_a_composition_is_within_its_mu() -> None:
    charges = [Charge(0.1, 1.0, 100), Charge(1.0, 8.0, 2)]
    mu = gaussian_mu(charges)
    assert gaussian_delta(mu, epsilon(charges, DELTA)) >= DELTA * (1 - 1e-6)
    assert gaussian_mu([Charge(0.1, 1.0, 200)]) > gaussian_mu([Charge(0.1, 1.0, 100)])


def test_no_noise_has_no_mu_and_no_group_epsilon() -> None:
    bare = [Charge(0.5, 1e-6, 10)]
    assert gaussian_mu(bare) == group_epsilon(bare, 2, DELTA) == math.inf


def test_a_group_of_one_is_a_unit() -> None:
    charges = [Charge(0.2, 1.5, 50), Charge(1.0, 8.0, 2)]
    assert group_epsilon(charges, 1, DELTA) == pytest.approx(epsilon(charges, DELTA), rel=2e-3)


@pytest.mark.parametrize("size", [2, 5])
def test_a_group_of_k_has_k_times_the_mu_without_sampling(size: int) -> None:
    stated = group_epsilon([Charge(1.0, 10.0, 4)], size, DELTA)  # μ = 0.2 of a unit
    # The group's exact curve is that of k μ (arXiv 1905.02383, theorem 2.14): never above.
    assert gaussian_delta(size * 0.2, stated) <= DELTA
    assert gaussian_delta(size * 0.2, stated * 0.99) > DELTA


def test_a_group_that_is_sampled_is_below_the_generic_bound() -> None:
    charges = [Charge(0.3, 2.0, 20)]
    # k changes of one unit each: (k ε', δ' (1 + e^ε' + … + e^{(k - 1) ε'}))-DP.
    own, size = 1e-9, 2
    spent = epsilon(charges, own)
    assert own * (1 + math.exp(spent)) < DELTA
    stated = group_epsilon(charges, size, DELTA)
    assert epsilon(charges, DELTA) < stated < size * spent
