"""Unchanged weights and zero moments are not sent; an empty tensor stands in the place of each.

A site leaves out weights and moments that it did not change: those of a classifier without labels,
or of layers that are not trained. The server leaves out moments that are all zero: before
the first round, and of such layers.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from mediffusion_core.messaging.compression import SCALE, apply_change
from mediffusion_core.messaging.moment_names import MEAN, SQUARE
from mediffusion_core.settings import Compression

StateDict = Mapping[str, Tensor]
Layout = Mapping[str, tuple[torch.Size, torch.dtype]]

EMPTY = torch.Size([0])


def unchanged(after: StateDict, before: StateDict) -> set[str]:
    """Names of the tensors that a site did not change."""
    return {n for n, value in after.items() if n in before and torch.equal(value.cpu(), before[n])}


def zero_moments(state: StateDict) -> set[str]:
    """Names of the moments that are all zero."""
    return {n for n, value in state.items() if n.endswith((MEAN, SQUARE)) and not value.any()}


def without(travelling: StateDict, names: Collection[str]) -> dict[str, Tensor]:
    """A compressed component with an empty tensor in the place of each of the named ones."""
    return {
        name: value.new_empty(0) if name.removesuffix(SCALE) in names else value
        for name, value in travelling.items()
    }


def left_out(travelling: StateDict) -> set[str]:
    """Names of the tensors that did not travel."""
    return {name for name, value in travelling.items() if value.shape == EMPTY}


def replied(
    before: StateDict, travelling: StateDict, layout: Layout, method: Compression
) -> dict[str, Tensor]:
    """Decompresses a component of a reply; a tensor that was left out stays as the server has it.

    Args:
        before: The component as the server has it.
        travelling: The component of the reply.
        layout: Names, shapes and types that it may have.
        method: Its compression.
    """
    absent = left_out(travelling)
    still = {name: torch.zeros(layout[name][0], dtype=layout[name][1]) for name in absent}
    moved = apply_change(before, {**travelling, **still}, method)
    return {**moved, **{name: before[name] for name in absent if name in before}}


def with_zero_moments(moments: StateDict, weights: StateDict) -> dict[str, Tensor]:
    """Decompressed moments as the server has them: zeros in the shapes of their weights.

    Args:
        moments: Of the message, without those left out.
        weights: Of the same component.
    """
    whole = dict(moments)
    for name, value in weights.items():
        for ending in (MEAN, SQUARE):
            whole.setdefault(name + ending, torch.zeros(value.shape, dtype=value.dtype))
    return whole
