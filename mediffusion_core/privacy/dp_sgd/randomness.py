"""Private noise and Poisson sampling, from the operating system's random numbers.

Noise protects only while it is secret: known noise can be subtracted. PyTorch's CPU generator uses
32 bits of its seed, and a laptop tries all of them in hours. Noise and the choice of units
therefore never come from a seeded generator.

Gaussian noise is made from the stream of AES-256 in counter mode (NIST SP 800-38A). The operating
system draws the key, and the key is dropped after use. This is about four times as fast as reading
all bits from the operating system.
"""

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PART = 1 << 14
"""Pairs of normal numbers per block; a block fits the processor's cache."""
ZEROS = memoryview(bytes(16 * PART))
"""Plain text of one block's stream: two numbers of eight bytes per pair."""


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
    """Independent N(0, 1), float64, on the CPU, by the Box-Muller transform.

    An attacker may recover the sum from the rounding pattern of the noise (arXiv 2107.10138). Noise
    is therefore made and added in double precision, and the sum is rounded afterwards. The pattern
    then lies far below the precision of the published sum.
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
    """A function from zeros to as many random bytes, one AES stream under a new key."""
    # Imported here: runs without privacy need no cipher.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor().update


def poisson_sample(units: int, sample_rate: float) -> Tensor:
    """Draws each unit independently with probability `sample_rate`.

    Returns:
        Numbers of the drawn units, ascending, (u,) int64; may be empty.
    """
    return torch.from_numpy(np.flatnonzero(uniform(units) <= sample_rate))


def secret_seed() -> int:
    """A random seed for draws outside the mechanism: timesteps, views, dropout."""
    return int.from_bytes(os.urandom(4), "big")
