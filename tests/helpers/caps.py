"""The smallest cap of a ledger that admits given charges."""

from collections.abc import Sequence

from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.accounting.filters import RenyiFilter


def cap_for(charges: Sequence[Charge], delta: float) -> float:
    """The smallest ε, to 1e-12 of it, whose Rényi filter at δ admits all charges."""
    low, high = 0.0, 1.0
    while not RenyiFilter(high, delta).admits(charges):
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if RenyiFilter(middle, delta).admits(charges):
            high = middle
        else:
            low = middle
    return high
