"""Other readings of a composition of private steps: μ of Gaussian DP, and ε of a group of units."""

import math
from collections.abc import Iterable

from scipy.optimize import brentq
from scipy.special import log_ndtr

from mediffusion_core.privacy.accounting.accountant import (
    LARGEST_EPSILON,
    POWER_DELTAS,
    Charge,
    epsilon,
    merged,
)

LARGEST_MU = 1e3
SMALLEST_DELTA = 1e-200
"""Of a unit's own (ε, δ) from which that of a group is made."""


def gaussian_mu(charges: Iterable[Charge]) -> float:
    """The smallest μ such that the composition leaks no more than μ-Gaussian DP.

    μ-Gaussian DP (Dong, Roth and Su, arXiv 1905.02383) is as hard to break as to tell N(0, 1) from
    N(μ, 1) by one draw. Its curve ε(δ) is at least that of the composition at each of
    `POWER_DELTAS`, from 0.3 to 1e-6. Infinite where ε is beyond all use.

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

    From (ε', δ') of one unit: a group of k has (k ε', δ' (e^{k ε'} - 1) / (e^{ε'} - 1))-DP, by k
    changes of one unit each (Vadhan, The Complexity of Differential Privacy, lemma 2.2). The δ' is
    the largest of a grid for which that is at most δ. Infinite where there is none.

    Args:
        charges: All of a unit.
        size: k, at least 1.
        delta: δ of the group.

    Raises:
        UserError: if Opacus or dp-accounting is not installed.
    """
    parts, own = merged(charges), delta
    while own > SMALLEST_DELTA:
        spent = epsilon(parts, own)
        if spent > LARGEST_EPSILON:
            return math.inf
        # log of 1 + e^ε' + … + e^{(k - 1) ε'}, without overflow
        summed = math.log(sum(math.exp((step - size + 1) * spent) for step in range(size)))
        if math.log(own) + (size - 1) * spent + summed <= math.log(delta):
            return size * spent
        own /= 10**0.25
    return math.inf
