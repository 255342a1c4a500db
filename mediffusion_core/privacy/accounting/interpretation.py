"""Other readings of a composition of private steps: μ of Gaussian DP, and ε of a group of units."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import binom

from mediffusion_core.privacy.accounting.accountant import (
    LARGEST_EPSILON,
    POWER_DELTAS,
    Charge,
    epsilon,
    merged,
    privacy_losses,
)

LARGEST_MU = 1e3
GROUP_INTERVAL = 2e-3
"""Distance of the grid points for the losses of a group, for each of its units."""


def gaussian_mu(charges: Iterable[Charge]) -> float:
    """The smallest μ whose Gaussian DP covers the composition at δ from 0.3 to 1e-6.

    μ-Gaussian DP (Dong, Roth and Su, arXiv 1905.02383) is as hard to break as to tell N(0, 1) from
    N(μ, 1) by one draw. Its curve ε(δ) is at least that of the composition at each of
    `POWER_DELTAS`; it is no bound at other δ. Infinite where ε is beyond all use.

    Args:
        charges: All of a unit.

    Raises:
        UserError: if Opacus or dp-accounting is not installed.
    """
    parts, largest = merged(charges), 0.0
    for delta in POWER_DELTAS:
        spent = epsilon(parts, delta)
        if spent > LARGEST_EPSILON:
            return math.inf
        if spent > 0:  # any μ has an ε of at least 0
            largest = max(largest, _mu_of(spent, delta))
    return largest


def gaussian_delta(mu: float, spent: float) -> float:
    """δ of μ-Gaussian DP at an ε (arXiv 1905.02383, corollary 2.13).

    Args:
        mu: μ, above 0.
        spent: ε, at least 0.
    """
    first = log_ndtr(mu / 2 - spent / mu)
    second = spent + log_ndtr(-mu / 2 - spent / mu)
    return float(math.exp(first) - math.exp(min(second, first)))


def _mu_of(spent: float, delta: float) -> float:
    """The μ whose δ at an ε is the given one; δ rises with μ."""
    low = 1e-6
    if gaussian_delta(low, spent) >= delta:
        return low
    return float(brentq(lambda mu: gaussian_delta(mu, spent) - delta, low, LARGEST_MU))


def group_epsilon(charges: Iterable[Charge], size: int, delta: float) -> float:
    """ε at δ of a group of units, whose presence changes together.

    In a step the number of the group's units that are drawn is binomial, and each adds at most one
    bound to the sum. The loss is that of a mixture of Gaussians with these weights (Ganesh, arXiv
    2401.10294), which dp-accounting composes, rounded to the side of a larger ε. Infinite where ε
    of a single unit is beyond all use.

    Args:
        charges: All of a unit, at least one.
        size: Number of units in the group, at least 1.
        delta: δ of the group.

    Raises:
        UserError: if Opacus or dp-accounting is not installed.
    """
    parts = merged(charges)
    if epsilon(parts, delta) > LARGEST_EPSILON:
        return math.inf
    first, *others = (_group_losses(part, size) for part in parts)
    for other in others:
        first = first.compose(other)
    return max(0.0, float(first.get_epsilon_for_delta(delta)))


def _group_losses(charge: Charge, size: int) -> Any:
    """The privacy loss distribution of a group in all steps of a charge."""
    drawn = np.arange(size + 1)
    chances = binom.pmf(drawn, size, charge.sample_rate)
    losses = privacy_losses().from_mixture_gaussian_mechanism(
        charge.noise_multiplier,
        sensitivities=drawn[chances > 0].tolist(),
        sampling_probs=chances[chances > 0].tolist(),
        value_discretization_interval=GROUP_INTERVAL * size,
        pessimistic_estimate=True,
    )
    return losses.self_compose(charge.steps)
