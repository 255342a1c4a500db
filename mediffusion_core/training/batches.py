"""Endless batches of positions."""

import torch
from torch import Tensor


class Shuffled:
    """Endless positions of a set: a new permutation for each pass."""

    def __init__(self, positions: Tensor, generator: torch.Generator) -> None:
        """Takes the positions (n,), n ≥ 1, and what draws the permutations."""
        self._positions = positions
        self._generator = generator
        self._queue = positions[:0]

    def next(self, count: int) -> Tensor:
        """The next `count` positions, (count,)."""
        while len(self._queue) < count:
            order = torch.randperm(len(self._positions), generator=self._generator)
            self._queue = torch.cat([self._queue, self._positions[order]])
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken
