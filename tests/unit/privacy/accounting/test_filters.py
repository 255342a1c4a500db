"""Filters against closed forms, the exact composition, and an adversary who chooses adaptively."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.accountants.analysis.rdp import get_privacy_spent
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr

from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting import filters
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.accounting.filters import (
    Filter,
    GaussianFilter,
    RenyiFilter,
    noise_multiplier_for,
)

DELTA = 1e-5
Losses = NDArray[np.float64]


@pytest.mark.parametrize("cap", [0.05, 1.0, 8.0, 60.0])
def test_the_order_admits_the_longest_composition_of_gaussian_mechanisms(cap: float) -> None:
    def longest(order: float) -> float:
        """μ² at an order: α μ² / 2 = ρ*."""
        shift = (math.log(DELTA) + math.log(order)) / (order - 1)
        return 2 * (cap - math.log((order - 1) / order) + shift) / order

    best = minimize_scalar(
        lambda log: -longest(1 + math.exp(log)), bounds=(-4, 10), method="bounded"
    )
    budget = RenyiFilter(cap, DELTA)
    assert -best.fun * 0.997 <= longest(budget.order) <= -best.fun * (1 + 1e-9)
    noise = 1 / math.sqrt(longest(budget.order) / 7)
    assert budget.share([Charge(1.0, noise, 7)]) == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:Optimal order")  # there is only one
@pytest.mark.parametrize("cap", [0.3, 2.0, 8.0, 40.0])
def test_the_budget_is_the_divergence_that_converts_to_the_cap(cap: float) -> None:
    budget = RenyiFilter(cap, DELTA)
    found, _ = get_privacy_spent(orders=[budget.order], rdp=[budget.budget], delta=DELTA)
    assert found == pytest.approx(cap)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.003, 0.05, 0.4, 1.0]), st.floats(0.6, 12.0)),
        min_size=1,
        max_size=3,
    ),
    st.floats(0.2, 20.0),
)
def test_admitted_charges_of_fixed_numbers_cost_at_most_the_cap(
    kinds: list[tuple[float, float]], cap: float
) -> None:
    """The longest composition of some kinds that the filter admits."""
    budget = RenyiFilter(cap, DELTA)
    steps = int(1 / budget.share([Charge(rate, noise, 1) for rate, noise in kinds]))
    assume(0 < steps < 100_000)
    charges = [Charge(rate, noise, steps) for rate, noise in kinds]
    assert budget.admits(charges) and epsilon(charges, DELTA) <= cap
    assert not budget.admits([Charge(rate, noise, steps + 1) for rate, noise in kinds])


def test_order_and_division_into_charges_do_not_matter() -> None:
    budget = RenyiFilter(3.0, DELTA)
    whole = [Charge(0.1, 1.0, 7), Charge(1.0, 8.0, 3)]
    single = [Charge(1.0, 8.0, 1)] * 2 + [Charge(0.1, 1.0, 1)] * 7 + [Charge(1.0, 8.0, 1)]
    assert budget.share(single) == budget.share(whole)


@pytest.mark.parametrize("kind", [RenyiFilter, GaussianFilter])
def test_nothing_is_admitted_without_noise_and_nothing_costs_nothing(kind: type[Filter]) -> None:
    assert kind(1e-9, DELTA).admits([])
    assert not kind(1e9, DELTA).admits([Charge(1.0, 0.0, 1)])
    assert not kind(1e-9, DELTA).admits([Charge(1.0, 1e4, 1)])


def test_the_gaussian_filter_is_the_exact_composition_and_takes_no_sampled_step() -> None:
    charges = [Charge(1.0, 8.0, 2), Charge(1.0, 5.0, 9)]
    spent = epsilon(charges, DELTA)
    assert GaussianFilter(spent, DELTA).admits(charges)
    assert not GaussianFilter(spent * (1 - 1e-9), DELTA).admits(charges)
    assert not RenyiFilter(spent, DELTA).admits(charges)
    assert not GaussianFilter(1e6, DELTA).admits([*charges, Charge(0.999, 1e3, 1)])


def gaussian_curve(mu: float) -> Callable[[Losses], Losses]:
    """δ(ε) of the Gaussian mechanism (arXiv 1805.06530, theorem 8)."""
    return lambda eps: ndtr(mu / 2 - eps / mu) - np.exp(eps) * ndtr(-mu / 2 - eps / mu)


def sampled_curve(q: float, sigma: float) -> Callable[[Losses], Losses]:
    """δ(ε) of one Poisson-sampled Gaussian step, of one unit more against one less."""

    def curve(eps: Losses) -> Losses:
        ratio = (np.exp(eps) - 1 + q) / q
        above = sigma**2 * np.log(np.maximum(ratio, 1e-300)) + 0.5
        mixture = (1 - q) * ndtr(-above / sigma) + q * ndtr(-(above - 1) / sigma)
        found: Losses = mixture - np.exp(eps) * ndtr(-above / sigma)
        return np.where(ratio <= 0, 1 - np.exp(eps), found)

    return curve


def delta_after(first: float, cap: float, *second: Callable[[Losses], Losses]) -> float:
    """δ at ε = cap of a Gaussian step with μ = `first` and the worst of some steps after it.

    The adversary sees the first result, and so its loss L, before the choice: with H_k the curve of
    step k, δ is E[max_k H_k(ε - L)] for the best choice.
    """
    z = np.linspace(-9, 9, 40_001)
    mass = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    rest = cap - (first**2 / 2 + first * z)
    worst = np.max([curve(rest) for curve in second], axis=0)
    return float((mass * worst).sum())


@pytest.mark.parametrize("cap", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_an_adaptive_choice_passes_an_exact_cap_and_not_the_filter(cap: float, rate: float) -> None:
    """After one step the adversary takes a second one on all units, or on a sample of them."""
    whole = brentq(lambda mu: float(gaussian_curve(mu)(np.array(cap))) - DELTA, 1e-3, 10)
    first = 0.7 * whole
    # Each choice alone, fixed in advance, has exactly δ at the cap.
    gaussian = gaussian_curve(math.sqrt(whole**2 - first**2))
    noise = brentq(lambda s: delta_after(first, cap, sampled_curve(rate, s)) - DELTA, 0.1, 50)
    assert delta_after(first, cap, gaussian) == pytest.approx(DELTA, rel=1e-3)
    assert delta_after(first, cap, gaussian, sampled_curve(rate, noise)) > 1.4 * DELTA
    # The filter's budget, spent to the end by each.
    budget, begun = RenyiFilter(cap, DELTA), Charge(1.0, 1 / first, 1)

    def least(q: float) -> float:
        return noise_multiplier_for(budget, lambda sigma: [begun, Charge(q, sigma, 1)])

    curves = gaussian_curve(1 / least(1.0)), sampled_curve(rate, least(rate))
    assert 0.1 * DELTA < delta_after(first, cap, *curves) < DELTA


@pytest.mark.parametrize("kind", [RenyiFilter, GaussianFilter])
@pytest.mark.parametrize(("target", "steps"), [(8.0, 20), (0.5, 5)])
def test_noise_solved_for_a_target_meets_it_and_wastes_nothing(
    kind: type[Filter], target: float, steps: int
) -> None:
    budget = kind(target, DELTA)
    rate = 0.05 if kind is RenyiFilter else 1.0

    def planned(noise: float) -> list[Charge]:
        return [Charge(1.0, 50.0, 1), Charge(rate, noise, steps)]

    noise = noise_multiplier_for(budget, planned)
    assert budget.admits(planned(noise)) and not budget.admits(planned(noise * 0.998))


def test_a_target_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "LARGEST_NOISE", 4.0)
    with pytest.raises(UserError, match="no noise multiplier up to 4 keeps the planned steps"):
        noise_multiplier_for(RenyiFilter(1e-3, DELTA), lambda noise: [Charge(1.0, noise, 9)])
