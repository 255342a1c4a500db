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


def largest_compositions(
    held: NDArray[np.bool_], charged: Sequence[tuple[int, Charge]]
) -> list[tuple[Charge, ...]]:
    """The compositions of units' charges that no other unit's composition contains.

    Units with the same set memberships are grouped first. There are few groups, so the work does
    not grow with units times charges.

    Args:
        held: (U, M), membership of each unit in each of M sets.
        charged: A set's number, and a charge of the set.

    Returns:
        For each composition one charge per sample rate and noise multiplier. Empty if no unit was
        charged.
    """
    if not len(held) or not charged:
        return []
    kinds = sorted({(charge.sample_rate, charge.noise_multiplier) for _, charge in charged})
    number = {kind: index for index, kind in enumerate(kinds)}
    steps = np.zeros((held.shape[1], len(kinds)), dtype=np.int64)  # (M, K)
    for member, charge in charged:
        steps[member, number[charge.sample_rate, charge.noise_multiplier]] += charge.steps
    patterns = np.unique(np.packbits(held, axis=1), axis=0)  # (A, M / 8)
    atoms = np.unpackbits(patterns, axis=1, count=held.shape[1]).astype(np.int64)  # (A, M)
    totals = np.unique(atoms @ steps, axis=0)  # (A', K)
    return [
        tuple(
            Charge(rate, noise, int(count))
            for (rate, noise), count in zip(kinds, total, strict=True)
            if count
        )
        for total in _undominated(totals)
        if total.any()
    ]


def _undominated(totals: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The distinct rows that no other row reaches or exceeds in every column."""
    kept: list[NDArray[np.int64]] = []
    for row in totals[np.argsort(-totals.sum(axis=1), kind="stable")]:
        if not kept or not (np.stack(kept) >= row).all(axis=1).any():
            kept.append(row)
    return kept
