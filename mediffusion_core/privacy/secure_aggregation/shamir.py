"""Shamir's secret sharing (Communications of the ACM 22(11), 1979) of 32 bytes.

A secret is the value at 0 of a random polynomial of degree k - 1 over a prime field. Share i is its
value at i + 1. Any k shares determine the polynomial, and k - 1 shares are uniform whatever the
secret.
"""

import secrets
from collections.abc import Mapping

PRIME = 2**521 - 1
"""A Mersenne prime above all secrets."""
SHARE_BYTES = 66
SECRET_BYTES = 32


def split(secret: bytes, count: int, threshold: int) -> list[bytes]:
    """Shares of a secret, numbered from 0; any `threshold` of them restore it.

    Raises:
        ValueError: if the secret has another length than 32 bytes, or the threshold is not from 1
            to the number of shares.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes, not {SECRET_BYTES}")
    if not 1 <= threshold <= count:
        raise ValueError(f"a threshold of {threshold} among {count} shares")
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return [_value(coefficients, at).to_bytes(SHARE_BYTES, "big") for at in range(1, count + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from exactly as many shares as its threshold, by their numbers.

    Raises:
        ValueError: if the shares are of no secret.
    """
    points = {number + 1: int.from_bytes(share, "big") for number, share in shares.items()}
    secret = 0
    for at, value in points.items():
        above, below = 1, 1
        for other in points:
            if other != at:
                above = above * other % PRIME
                below = below * (other - at) % PRIME
        secret += value * above * pow(below, -1, PRIME)
    secret %= PRIME
    if secret >> 8 * SECRET_BYTES:
        raise ValueError("the shares are of no secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: list[int], at: int) -> int:
    """The polynomial's value, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % PRIME
    return value
