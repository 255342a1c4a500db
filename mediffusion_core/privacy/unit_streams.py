"""Random numbers of single units, from one stream for each unit.

A unit's stream follows from the round's secret, the unit's name and the place of the draw alone. So
another unit more or less changes none of its numbers, and all units of a batch are drawn at once.

The stream is that of SplitMix64 (Steele et al., OOPSLA 2014, figure 17): number j is mix(k + jγ).
The key k is a keyed hash (BLAKE2b) of the unit's name. These numbers never leave the site. The
noise of the mechanism and the choice of units come from `dp_sgd.randomness`.
"""

import hashlib
import math
import os
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""Shifts and factors of SplitMix64's output function."""

_Words = NDArray[np.uint64]


class UnitStreams:
    """The streams of a site's units."""

    def __init__(self, names: Iterable[str], secret: bytes | None = None) -> None:
        """Takes the units' names, distinct and in the order of their numbers.

        Args:
            names: Of the units.
            secret: Of the round, at most 64 bytes; by default from the operating system.
        """
        key = os.urandom(32) if secret is None else secret
        digests = [
            hashlib.blake2b(name.encode("utf-8", "surrogateescape"), key=key, digest_size=8)
            for name in names
        ]
        self._keys = np.frombuffer(b"".join(one.digest() for one in digests), dtype="<u8")

    def at(self, units: Tensor, *place: int) -> "Draws":
        """The streams of units (n,) at a place, such as a step and the number of a row.

        Streams of different places of the same length are independent.
        """
        keys = self._keys[units.numpy()].astype(np.uint64)
        for part in place:
            keys = _mixed(keys ^ _mixed(np.uint64(part) + _GAMMA))
        return Draws(keys)


class Draws:
    """Numbers of some units; each call takes the next ones of every unit's stream."""

    def __init__(self, keys: _Words) -> None:
        """Takes the key of each unit's stream, (n,)."""
        self._keys, self._taken = keys, 0

    def __len__(self) -> int:
        """Number of units, n."""
        return len(self._keys)

    def uniform(self) -> Tensor:
        """Multiples of 2⁻⁵³ in [0, 1), (n,) float64."""
        return torch.from_numpy((self._words(1)[:, 0] >> np.uint64(11)) * 2.0**-53)

    def below(self, bound: int) -> Tensor:
        """Whole numbers from 0 to `bound` - 1, (n,) int64; `bound` is far below 2⁵³."""
        return (self.uniform() * bound).long()

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1) by the Box-Muller transform, (n, *shape) float32; one word makes two numbers."""
        count = math.prod(shape)
        words = self._words((count + 1) // 2)  # (n, pairs)
        high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
        radius = np.sqrt(-2 * np.log((high.astype(np.float32) + 1) * np.float32(2.0**-32)))
        angle = low.astype(np.float32) * np.float32(2 * math.pi * 2.0**-32)
        pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return torch.from_numpy(pairs[:, :count]).reshape(len(self), *shape)

    def _words(self, count: int) -> _Words:
        """The next `count` words of each stream, (n, count)."""
        places = np.arange(self._taken + 1, self._taken + count + 1, dtype=np.uint64)
        self._taken += count
        return _mixed(self._keys[:, None] + places * _GAMMA)


def _mixed(words: _Words | np.uint64) -> _Words:
    mixed = np.atleast_1d(words).copy()
    for shift, factor in _MIX:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    return mixed
