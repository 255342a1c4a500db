"""ε at δ of a composition of private steps: the smaller bound of two accountants.

The mechanism is the Gaussian mechanism on a Poisson sample (DP-SGD, arXiv 1607.00133). Two datasets
are neighbours if one has one unit more. One accountant is Opacus': Rényi DP (arXiv 1908.10530,
converted by arXiv 1905.09982, theorem 21). The other one is Google's dp-accounting: privacy loss
distributions, PLD, rounded to the side of a larger ε (arXiv 2207.04380). Each gives an upper bound,
so the smaller one is a bound.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError

RDP_ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512),
)
GRID = 50_000
"""Grid points of the PLD accountant for losses from 0 to ε; larger losses have more."""
GRID_STEPS = 20_000
"""Steps from which on the grid is finer, by the root: each step rounds its losses anew."""
STEP_GRID = 100_000
"""Most grid points for the losses of one step, which may be far larger than ε. The error of ε falls
with the square of their distance (arXiv 2207.04380)."""
LARGEST_EPSILON = 1e4
"""Above it the PLD accountant is not asked: no promise is as large, and its grid would overflow."""
MIN_DELTA = 1e-8
"""Smallest δ for the PLD accountant; below it, rounding of its sums is not negligible."""
POWER_DELTAS = tuple(10 ** (-exponent / 4) for exponent in range(2, 25))
"""The δ, from 0.3 to 1e-6, of the pairs that bound an attack's power."""
LARGEST_EXPONENT = 100.0


@dataclass(frozen=True, order=True)
class Charge:
    """Some steps of the Poisson-sampled Gaussian mechanism.

    Attributes:
        sample_rate: Probability that a unit is in a step, in (0, 1].
        noise_multiplier: Standard deviation of the noise over the largest norm of a unit's part.
            0 means no noise: ε is infinite.
        steps: Number of steps, at least 1.

    Raises:
        ValueError: if a number is out of range.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(f"sample_rate={self.sample_rate} is not in (0, 1]")
        if not 0.0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier={self.noise_multiplier} is not a finite number ≥ 0")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps} is not an integer ≥ 1")


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """ε at δ of all charges together, in any order: their unit has (ε, δ)-DP.

    Raises:
        ValueError: if δ is not in (0, 1).
        UserError: if Opacus or dp-accounting is not installed.
    """
    parts = _checked(charges, delta)
    return min(_rdp_epsilon(parts, delta), _pld_epsilon(parts, delta))


def largest_true_positive_rate(charges: Iterable[Charge], false_positive_rate: float) -> float:
    """The largest share of members that any attack finds, at a share of false accusations.

    From the whole curve ε(δ) of the composition, not from ε at one δ: a test with false positive
    rate α has a power of at most min(e^ε α + δ, 1 - e^-ε (1 - δ - α)) for each pair (Kairouz et
    al., arXiv 1311.0776, theorem 2.1).

    Args:
        charges: All of a unit.
        false_positive_rate: α.

    Raises:
        UserError: if Opacus or dp-accounting is not installed.
    """
    parts, largest = list(charges), 1.0
    for delta in POWER_DELTAS:
        spent = epsilon(parts, delta)
        if math.isfinite(spent):
            few = math.exp(min(spent, LARGEST_EXPONENT)) * false_positive_rate + delta
            many = 1 - math.exp(-spent) * (1 - delta - false_positive_rate)
            largest = min(largest, few, many)
    return largest


Parts = tuple[Charge, ...]


def merged(charges: Iterable[Charge]) -> Parts:
    """The same composition with one charge for each sample rate and noise multiplier, sorted."""
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[charge.sample_rate, charge.noise_multiplier] += charge.steps
    return tuple(Charge(rate, noise, steps[rate, noise]) for rate, noise in sorted(steps))


def _checked(charges: Iterable[Charge], delta: float) -> Parts:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta={delta} is not in (0, 1)")
    return merged(charges)


def _opacus_rdp() -> Any:
    try:
        from opacus.accountants.analysis import rdp
    except ImportError:
        raise _not_installed() from None
    return rdp


def privacy_losses() -> Any:
    """The module of privacy loss distributions.

    Raises:
        UserError: if dp-accounting is not installed.
    """
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError:
        raise _not_installed() from None
    return privacy_loss_distribution


def _not_installed() -> UserError:
    return UserError(
        "privacy accounting needs Opacus and dp-accounting: pip install 'fed-mediffusion[privacy]'"
    )


@lru_cache(maxsize=1 << 16)
def step_divergence(sample_rate: float, noise_multiplier: float, order: float) -> float:
    """Rényi divergence of one step at an order above 1; infinite if it can't be computed.

    Raises:
        UserError: if Opacus is not installed.
    """
    if noise_multiplier == 0:
        return math.inf
    try:
        value = _opacus_rdp().compute_rdp(
            q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=float(order)
        )
    except (ValueError, OverflowError):  # cancellation at some fractional orders
        return math.inf
    # A divergence is never negative; a negative value is a rounding error.
    return float(value) if value >= 0 else math.inf


def _rdp(sample_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Rényi divergence of one step at each of `RDP_ORDERS`."""
    return np.array([step_divergence(sample_rate, noise_multiplier, one) for one in RDP_ORDERS])


@lru_cache(maxsize=4096)
def _rdp_epsilon(parts: Parts, delta: float) -> float:
    if not parts:
        return 0.0
    total = sum(part.steps * _rdp(part.sample_rate, part.noise_multiplier) for part in parts)
    if not np.isfinite(total).any():
        return math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "best order is the last one": the bound still holds
        found, _ = _opacus_rdp().get_privacy_spent(orders=RDP_ORDERS, rdp=total, delta=delta)
    return max(0.0, float(found))


@lru_cache(maxsize=4096)
def _pld_epsilon(parts: Parts, delta: float) -> float:
    """The larger ε of both neighbours: a unit removed, and a unit added."""
    if not parts:
        return 0.0
    about = _rdp_epsilon(parts, delta)
    if delta < MIN_DELTA or about > LARGEST_EPSILON:
        return math.inf
    # Powers of 2, so that nearly equal compositions share their steps' distributions.
    finer = max(1.0, math.sqrt(sum(part.steps for part in parts) / GRID_STEPS))
    coarsest = max(about / (GRID * finer), *(_largest_loss(part) / STEP_GRID for part in parts))
    interval = 2.0 ** math.ceil(math.log2(coarsest))
    return max(0.0, float(_losses(parts, interval).get_epsilon_for_delta(delta)))


def _largest_loss(charge: Charge) -> float:
    """The privacy loss of one step where its Gaussian lies eight standard deviations out."""
    sigma = charge.noise_multiplier
    loss = 8 / sigma + 0.5 / sigma**2  # log N(x; 1, σ²) / N(x; 0, σ²) at x = 1 + 8 σ
    return min(loss, math.log1p(charge.sample_rate * math.expm1(min(loss, LARGEST_EXPONENT))))


@lru_cache(maxsize=64)
def _losses(parts: Parts, interval: float) -> Any:
    """The privacy loss distribution of a composition."""
    first, *others = (_step_losses(part, interval).self_compose(part.steps) for part in parts)
    for other in others:
        first = first.compose(other)
    return first


@lru_cache(maxsize=64)
def _step_losses(charge: Charge, interval: float) -> Any:
    """That of one step of a charge."""
    return privacy_losses().from_gaussian_mechanism(
        charge.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=charge.sample_rate,
        pessimistic_estimate=True,
    )
