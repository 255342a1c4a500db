"""ε at δ of a composition of private steps: the smaller bound of two accountants.

The mechanism is the Gaussian mechanism on a Poisson sample (DP-SGD, arXiv 1607.00133). Two datasets
are neighbours if one has one unit more. Both accountants are from Opacus: Rényi DP (arXiv
1908.10530, converted by arXiv 1905.09982, theorem 21), and numerical composition of privacy loss
random variables, PRV (arXiv 2106.02848). Each gives an upper bound, so the smaller one is a bound.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from mediffusion_core.common.errors import UserError

RDP_ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512),
)
MAX_GRID = 2**21
"""Largest number of grid points of the PRV accountant; longer compositions get a coarser grid."""
MIN_DELTA = 1e-8
"""Smallest δ for the PRV accountant; below it, rounding of its sums is not negligible."""
MAX_ERROR = 0.5
"""Largest error of ε for the PRV accountant; its bound includes the error."""
POWER_DELTAS = tuple(10 ** (-exponent / 4) for exponent in range(2, 25))
"""The δ, from 0.3 to 1e-6, of the pairs that bound an attack's power."""
LARGEST_EXPONENT = 100.0
SMALLEST_NOISE, LARGEST_NOISE = 0.01, 1e4
"""Range of the search for a noise multiplier."""


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
        UserError: if Opacus is not installed.
    """
    parts = _checked(charges, delta)
    return min(_rdp_epsilon(parts, delta), _prv_epsilon(parts, delta))


def within(charges: Iterable[Charge], target_epsilon: float, delta: float) -> bool:
    """Whether all charges together stay within `target_epsilon` at δ.

    Equal to a comparison with `epsilon`, but runs the slower accountant only if the faster one does
    not decide.

    Raises:
        ValueError: if δ is not in (0, 1).
        UserError: if Opacus is not installed.
    """
    parts = _checked(charges, delta)
    return (
        _rdp_epsilon(parts, delta) <= target_epsilon or _prv_epsilon(parts, delta) <= target_epsilon
    )


def largest_true_positive_rate(charges: Iterable[Charge], false_positive_rate: float) -> float:
    """The largest share of members that any attack finds, at a share of false accusations.

    From the whole curve ε(δ) of the composition, not from ε at one δ: a test with false positive
    rate α has a power of at most min(e^ε α + δ, 1 - e^-ε (1 - δ - α)) for each pair (Kairouz et
    al., arXiv 1311.0776, theorem 2.1).

    Args:
        charges: All of a unit.
        false_positive_rate: α.

    Raises:
        UserError: if Opacus is not installed.
    """
    parts, largest = list(charges), 1.0
    for delta in POWER_DELTAS:
        spent = epsilon(parts, delta)
        if math.isfinite(spent):
            few = math.exp(min(spent, LARGEST_EXPONENT)) * false_positive_rate + delta
            many = 1 - math.exp(-spent) * (1 - delta - false_positive_rate)
            largest = min(largest, few, many)
    return largest


def noise_multiplier_for(
    target_epsilon: float, delta: float, charges: Callable[[float], Iterable[Charge]]
) -> float:
    """The smallest noise multiplier, to 0.1 %, with all charges within `target_epsilon`.

    Args:
        target_epsilon: Largest ε.
        delta: δ of ε.
        charges: All charges for a noise multiplier. Their ε must fall with the multiplier.

    Raises:
        ValueError: if a number is out of range.
        UserError: if `LARGEST_NOISE` is too small, or Opacus is not installed.
    """
    if not target_epsilon > 0:
        raise ValueError(f"target_epsilon={target_epsilon} is not above 0")

    def excess(log_noise: float) -> float:
        spent = epsilon(charges(math.exp(log_noise)), delta)
        # Almost linear in log σ. The caps keep it finite for ε = 0 and infinite ε.
        return min(50.0, math.log(max(spent, target_epsilon * 1e-9) / target_epsilon))

    high, least, most = 0.0, math.log(SMALLEST_NOISE), math.log(LARGEST_NOISE)
    while excess(high) > 0:
        high += math.log(2)
        if high > most:
            raise UserError(
                f"no noise multiplier up to {LARGEST_NOISE:g} keeps the planned steps within "
                f"ε = {target_epsilon:g} at δ = {delta:g}"
            )
    low = high - math.log(2)
    while low > least and excess(low) <= 0:
        low, high = low - math.log(2), low
    if low <= least:
        return math.exp(high)
    found = float(brentq(excess, low, high, xtol=5e-4))
    while excess(found) > 0:
        found += 5e-4
    return math.exp(found)


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


def _opacus() -> Any:
    try:
        from opacus.accountants import analysis
        from opacus.accountants.analysis import prv, rdp  # noqa: F401
    except ImportError:
        raise UserError(
            "privacy accounting needs Opacus: pip install 'fed-mediffusion[privacy]'"
        ) from None
    return analysis


@lru_cache(maxsize=4096)
def _rdp(sample_rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Rényi divergence of one step at each of `RDP_ORDERS`."""
    if noise_multiplier == 0:
        return np.full(len(RDP_ORDERS), math.inf)
    compute = _opacus().rdp.compute_rdp
    found = []
    for order in RDP_ORDERS:
        try:
            value = compute(
                q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=float(order)
            )
        except (ValueError, OverflowError):  # cancellation at some fractional orders
            value = math.inf
        # A divergence is never negative; a negative value is a rounding error.
        found.append(float(value) if value >= 0 else math.inf)
    return np.array(found)


@lru_cache(maxsize=4096)
def _rdp_epsilon(parts: Parts, delta: float) -> float:
    if not parts:
        return 0.0
    total = sum(part.steps * _rdp(part.sample_rate, part.noise_multiplier) for part in parts)
    if not np.isfinite(total).any():
        return math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "best order is the last one": the bound still holds
        found, _ = _opacus().rdp.get_privacy_spent(orders=RDP_ORDERS, rdp=total, delta=delta)
    return max(0.0, float(found))


@lru_cache(maxsize=4096)
def _prv_epsilon(parts: Parts, delta: float) -> float:
    """The larger ε of both neighbours: a unit removed, and a unit added."""
    if not parts:
        return 0.0
    about = _rdp_epsilon(parts, delta)
    if delta < MIN_DELTA or not math.isfinite(about):
        return math.inf
    error = min(MAX_ERROR, max(0.01, about / 1000))
    removed = _opacus().prv.PoissonSubsampledGaussianPRV
    return max(
        _composed(_random_variables(kind, parts), parts, delta, error)
        for kind in (removed, _AddedUnit)
    )


class _AddedUnit:
    """log(Q/P) of x ~ Q, where P = (1 - q) Q + q N(1, σ²) and Q = N(0, σ²) (arXiv 2106.08567)."""

    def __init__(self, sample_rate: float, noise_multiplier: float) -> None:
        self.sample_rate, self.noise_multiplier = sample_rate, noise_multiplier

    def cdf(self, t: Any) -> Any:
        q, sigma = self.sample_rate, self.noise_multiplier
        inside = np.exp(-np.asarray(t)) - 1 + q
        z = np.log(np.where(inside > 0, inside, q) / q)
        return np.where(inside > 0, ndtr(-sigma * z - 0.5 / sigma), 1.0)


def _random_variables(kind: Any, parts: Parts) -> list[Any]:
    return [kind(part.sample_rate, part.noise_multiplier) for part in parts]


def _composed(variables: list[Any], parts: Parts, delta: float, eps_error: float) -> float:
    """Upper bound on ε of a composition, infinite if double precision does not suffice."""
    prv = _opacus().prv
    steps, delta_error = [part.steps for part in parts], delta / 1000
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            largest = prv.compute_safe_domain_size(variables, steps, eps_error, delta_error)
            fineness = math.sqrt(sum(steps) * math.log(12 / delta_error) / 2)
            eps_error = max(eps_error, 2 * largest * fineness / MAX_GRID)
            if not eps_error <= MAX_ERROR:
                return math.inf
            mesh = eps_error / fineness
            domain = prv.Domain.create_aligned(-largest, largest, mesh)
            cut = [prv.TruncatedPrivacyRandomVariable(one, -largest, largest) for one in variables]
            discrete = [prv.discretize(one, domain) for one in cut]
            whole = prv.compose_heterogeneous(discrete, steps)
            if not abs(whole.pmf.sum() - 1) < delta_error:
                return math.inf
            _, _, upper = whole.compute_epsilon(delta, delta_error, eps_error)
        except (ValueError, RuntimeError, FloatingPointError, OverflowError):
            return math.inf
    return max(0.0, float(upper)) if math.isfinite(upper) else math.inf
