"""Endless batches of positions."""

from typing import Protocol

import torch
from torch import Tensor


class Batches(Protocol):
    """Endless batches of positions."""

    def next(self, count: int) -> Tensor:
        """The next `count` positions, (count,)."""
        ...


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


class Weighted:
    """Endless positions of a set, drawn with replacement in proportion to their weights."""

    def __init__(self, weights: Tensor, generator: torch.Generator) -> None:
        """Takes one weight a position, (n,), n ≥ 1, not negative, and what draws."""
        self._weights = weights
        self._generator = generator

    def next(self, count: int) -> Tensor:
        """The next `count` positions, (count,)."""
        return torch.multinomial(self._weights, count, replacement=True, generator=self._generator)


def rarity(targets: Tensor, power: float) -> Tensor:
    """Weight of each image by the rarest class that it has, 1 / n_c^power, (m,).

    With power 1 every exclusive class is drawn equally often, with 1/2 it is square-root sampling
    (arXiv 1910.09217, section 3; there q = 0 and q = 1/2). Images that have none of the findings
    are a class of their own.

    Args:
        targets: (m, C) in {0, 1}; NaN where a label is missing.
        power: How much rare classes are favoured; with 0 all weights are 1.
    """
    has = targets == 1
    has = torch.cat([has, ~has.any(dim=1, keepdim=True)], dim=1)  # (m, C + 1)
    weights = has.sum(dim=0).clamp(min=1).double().pow(-power)
    return (has * weights).amax(dim=1)
