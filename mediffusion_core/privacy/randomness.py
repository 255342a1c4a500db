"""Randomness that nobody outside a site can know: from the operating system, never from a seed.

Whoever knows the noise can subtract it, and whoever can try all seeds knows it. A generator of
PyTorch keeps 32 bits of its seed, which a laptop tries in hours, so that private noise and the
choice of the units do not come from one.
"""

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def uniform(count: int) -> NDArray[np.float64]:
    """Independent numbers in (0, 1], multiples of 2⁻⁵³, (count,)."""
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return (bits.astype(np.float64) + 1.0) * 2.0**-53


def normal(shape: torch.Size) -> Tensor:
    """Independent N(0, 1), float64, on the CPU, by Box and Muller's transform.

    In double precision, to be added in double precision and rounded afterwards: the noise's own
    pattern of rounding, from which an attacker may tell what it was added to (arXiv 2107.10138),
    then lies far below what is published.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    radius = np.sqrt(-2.0 * np.log(uniform(half)))
    angle = 2.0 * math.pi * uniform(half)
    drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(drawn).reshape(shape)


def poisson_sample(units: int, sample_rate: float) -> Tensor:
    """Numbers of the units drawn for one step, each independently with `sample_rate`; maybe none.

    Returns:
        Ascending, (u,) int64.
    """
    return torch.from_numpy(np.flatnonzero(uniform(units) <= sample_rate))


def secret_seed() -> int:
    """A seed that no setting knows, for what is not the mechanism's: timesteps, views, dropout."""
    return int.from_bytes(os.urandom(4), "big")
