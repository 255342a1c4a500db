"""Secret sharing: any k shares restore the secret, fewer fit every secret."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediffusion_core.privacy.secure_aggregation.shamir import PRIME, combine, split


@given(secret=st.binary(min_size=32, max_size=32), count=st.integers(1, 7), data=st.data())
def test_any_shares_of_the_threshold_restore_the_secret(
    secret: bytes, count: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, count))
    shares = dict(enumerate(split(secret, count, threshold)))
    for chosen in itertools.combinations(shares, threshold):
        assert combine({number: shares[number] for number in chosen}) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    shares = split(os.urandom(32), 4, 3)
    for secret in (0, 1, 2**256 - 1):  # a quadratic through two shares and (0, secret) exists
        points = {
            0: secret,
            1: int.from_bytes(shares[0], "big"),
            2: int.from_bytes(shares[1], "big"),
        }
        third = (3 * points[2] - 3 * points[1] + points[0]) % PRIME  # its value at 3
        whole = {0: shares[0], 1: shares[1], 2: third.to_bytes(66, "big")}
        assert combine(whole) == secret.to_bytes(32, "big")


def test_shares_of_two_deals_are_unlike() -> None:
    secret = os.urandom(32)
    assert not set(split(secret, 4, 3)) & set(split(secret, 4, 3))


def test_false_shares_are_of_no_secret() -> None:
    shares = dict(enumerate(split(bytes(32), 3, 2)))
    with pytest.raises(ValueError, match="of no secret"):
        combine({0: shares[0], 1: os.urandom(64).rjust(66, b"\1")})


@pytest.mark.parametrize(("length", "count", "threshold"), [(31, 3, 2), (32, 3, 4), (32, 3, 0)])
def test_impossible_deals_are_refused(length: int, count: int, threshold: int) -> None:
    with pytest.raises(ValueError, match=r"a (secret|threshold) of"):
        split(bytes(length), count, threshold)
