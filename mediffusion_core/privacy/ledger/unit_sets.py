"""Sets of charged units as bits, and the compositions that can have the largest ε."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.privacy.accounting.accountant import Charge


def as_bits(numbers: NDArray[np.int64]) -> bytes:
    """Packs a set of unit numbers into one bit per unit; 100,000 units take 12.5 kB."""
    held = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=bool)
    held[numbers] = True
    return np.packbits(held).tobytes()


def from_bits(bits: bytes, size: int) -> NDArray[np.bool_]:
    """Membership of each of `size` units in the set, (size,)."""
    packed = np.frombuffer(bits, dtype=np.uint8)
    held = np.zeros(size, dtype=bool)
    found = np.unpackbits(packed)[:size]
    held[: len(found)] = found
    return held


Composition = tuple[Charge, ...]
"""A unit's charges, one for each sample rate and noise multiplier."""


def unit_compositions(
    held: NDArray[np.bool_], charged: Sequence[tuple[int, Charge]]
) -> tuple[list[Composition], NDArray[np.int64]]:
    """The distinct compositions of units' charges, and the number of each unit's composition (U,).

    Units with the same set memberships are grouped first. There are few groups, so the work does
    not grow with units times charges.

    Args:
        held: (U, M), membership of each unit in each of M sets.
        charged: A set's number, and a charge of the set.
    """
    kinds = sorted({(charge.sample_rate, charge.noise_multiplier) for _, charge in charged})
    totals, of_unit = _totals(held, charged, kinds)
    return [_composition(kinds, total) for total in totals], of_unit


def largest_compositions(
    held: NDArray[np.bool_], charged: Sequence[tuple[int, Charge]]
) -> list[Composition]:
    """The compositions of units' charges that no other unit's composition contains.

    Args:
        held: As for `unit_compositions`.
        charged: As for `unit_compositions`.

    Returns:
        Empty if no unit was charged.
    """
    kinds = sorted({(charge.sample_rate, charge.noise_multiplier) for _, charge in charged})
    totals, _ = _totals(held, charged, kinds)
    return [_composition(kinds, total) for total in _undominated(totals) if total.any()]


def _totals(
    held: NDArray[np.bool_],
    charged: Sequence[tuple[int, Charge]],
    kinds: Sequence[tuple[float, float]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct sums of steps by kind of charge (A, K), and the number of each unit's sum (U,)."""
    number = {kind: index for index, kind in enumerate(kinds)}
    steps = np.zeros((held.shape[1], len(kinds)), dtype=np.int64)  # (M, K)
    for member, charge in charged:
        steps[member, number[charge.sample_rate, charge.noise_multiplier]] += charge.steps
    if not steps.size:
        return np.zeros((1, len(kinds)), dtype=np.int64), np.zeros(len(held), dtype=np.int64)
    packed = np.packbits(held, axis=1)  # (U, M / 8)
    patterns, of_unit = np.unique(packed, axis=0, return_inverse=True)
    atoms = np.unpackbits(patterns, axis=1, count=held.shape[1]).astype(np.int64)
    totals, of_pattern = np.unique(atoms @ steps, axis=0, return_inverse=True)
    return totals, of_pattern.reshape(-1)[of_unit.reshape(-1)]


def _composition(kinds: Sequence[tuple[float, float]], total: NDArray[np.int64]) -> Composition:
    return tuple(
        Charge(rate, noise, int(count))
        for (rate, noise), count in zip(kinds, total, strict=True)
        if count
    )


def _undominated(totals: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The distinct rows that no other row reaches or exceeds in every column."""
    kept: list[NDArray[np.int64]] = []
    for row in totals[np.argsort(-totals.sum(axis=1), kind="stable")]:
        if not kept or not (np.stack(kept) >= row).all(axis=1).any():
            kept.append(row)
    return kept
