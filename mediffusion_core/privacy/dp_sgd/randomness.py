"""Randomness that nobody outside a site can know: from the operating system, never from a seed.

Whoever knows the noise can subtract it, and whoever can try all seeds knows it. A generator of
PyTorch keeps 32 bits of its seed, which a laptop tries in hours, so that private noise and the
choice of the units do not come from one.

What is drawn in great number is the stream of AES-256 in counter mode (NIST SP 800-38A) under a key
that the operating system draws and nobody keeps: some four times as fast as asking it for all bits.
"""

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PART = 1 << 14
"""Pairs that are made at once, so that they stay in the processor's own memory meanwhile."""
ZEROS = memoryview(bytes(16 * PART))
"""What a part's stream is made of: two numbers of eight bytes each for a pair."""


def uniform(count: int) -> NDArray[np.float64]:
    """Independent numbers in (0, 1], multiples of 2⁻⁵³, (count,)."""
    return _uniform(os.urandom(8 * count))


def _uniform(drawn: bytes) -> NDArray[np.float64]:
    bits = np.frombuffer(drawn, dtype=np.uint64) >> np.uint64(11)
    numbers = bits.astype(np.float64)
    numbers += 1.0
    numbers *= 2.0**-53
    return numbers


def normal(shape: torch.Size) -> Tensor:
    """Independent N(0, 1), float64, on the CPU, by Box and Muller's transform.

    In double precision, to be added in double precision and rounded afterwards: the noise's own
    pattern of rounding, from which an attacker may tell what it was added to (arXiv 2107.10138),
    then lies far below what is published.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    drawn = torch.empty(2, pairs, dtype=torch.float64)
    stream = _stream()
    for first in range(0, pairs, PART):
        part = drawn[:, first : first + PART]
        numbers = torch.from_numpy(_uniform(stream(ZEROS[: 8 * part.numel()])))
        radius, angle = numbers.chunk(2)
        radius.log_().mul_(-2.0).sqrt_()
        angle.mul_(2.0 * math.pi)
        torch.mul(radius, angle.cos(), out=part[0])
        torch.mul(radius, angle.sin(), out=part[1])
    return drawn.flatten()[:count].reshape(shape)


def _stream() -> Callable[[memoryview], bytes]:
    """Turns zeros into as many bytes that nobody can foretell, of one stream under a new key."""
    # Imported here: what is not private needs no cipher.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor().update


def poisson_sample(units: int, sample_rate: float) -> Tensor:
    """Numbers of the units drawn for one step, each independently with `sample_rate`; maybe none.

    Returns:
        Ascending, (u,) int64.
    """
    return torch.from_numpy(np.flatnonzero(uniform(units) <= sample_rate))


def secret_seed() -> int:
    """A seed that no setting knows, for what is not the mechanism's: timesteps, views, dropout."""
    return int.from_bytes(os.urandom(4), "big")
