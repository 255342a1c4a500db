"""The lower bound of ε from guesses: its formula, and the Gaussian mechanism."""

import numpy as np
import pytest
from scipy.stats import binom

from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.auditing.lower_bound import (
    epsilon_lower_bound,
    probability_of_guesses,
)

DELTA = 1e-5


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize(("guesses", "right"), [(40, 30), (40, 40), (10, 1), (10, 0)])
def test_the_probability_is_that_of_its_formula(guesses: int, right: int, delta: float) -> None:
    rate = 1 / (1 + np.exp(-0.7))
    expected = binom.sf(right - 1, guesses, rate)
    shares = [
        (binom.cdf(right - 1, guesses, rate) - binom.cdf(right - i - 1, guesses, rate)) / i
        for i in range(1, right + 1)
    ]
    expected = min(1.0, expected + 2 * 100 * delta * max(shares, default=0.0))
    found = probability_of_guesses(0.7, 100, guesses, right, delta)
    assert found == pytest.approx(expected, rel=1e-9)


def scores(noise: float, canaries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the Gaussian mechanism of sensitivity 1."""
    generator = np.random.default_rng(seed)
    took_part = generator.random(canaries) < 0.5
    return took_part + noise * generator.standard_normal(canaries), took_part


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_bound_is_below_the_epsilon_of_the_mechanism(noise: float) -> None:
    promised = epsilon([Charge(1.0, noise, 1)], DELTA)
    bounds = [epsilon_lower_bound(*scores(noise, 1000, seed), DELTA, 0.95) for seed in range(20)]
    assert sum(bound > promised for bound in bounds) <= 1
    assert np.median(bounds) > 0.1 * promised


def test_noise_of_a_third_is_found() -> None:
    promised = epsilon([Charge(1.0, 1.8, 1)], DELTA)
    assert promised < 3
    bounds = [epsilon_lower_bound(*scores(0.6, 1000, seed), DELTA, 0.95) for seed in range(10)]
    assert min(bounds) > promised


def test_scores_that_tell_nothing_refute_nothing() -> None:
    generator = np.random.default_rng(0)
    took_part = generator.random(1000) < 0.5
    assert epsilon_lower_bound(generator.standard_normal(1000), took_part, DELTA, 0.95) < 0.5
