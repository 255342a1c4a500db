"""One site's side of a masked sum (Bonawitz et al., CCS 2017, figure 4, honest but curious server).

The sites of a round are numbered from 0 by their place in the roster, a list of all public keys. A
site masks its vector x, with all arithmetic modulo 2⁶⁴:

    y_i = x_i + m(b_i) + Σ_{j > i} m(s_ij) - Σ_{j < i} m(s_ij)

m makes a mask of a key, s_ij is the key that sites i and j agree on, and b_i a key of site i alone.
The masks of s_ij cancel in the sum over the sites. Each site deals shares of its b_i and of the
private key of its s_ij to all. Of a site whose y_i arrived k sites give their shares of b_i, and of
one that dropped out after dealing k sites give their shares of the private key. No site gives both.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import RefusedError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.privacy.secure_aggregation import shamir
from mediffusion_core.privacy.secure_aggregation.keys import (
    KEY_BYTES,
    SEALED_BYTES,
    KeyPair,
    agreed_key,
    mask,
    new_key_pair,
    seal,
    unseal,
)
from mediffusion_core.privacy.secure_aggregation.shamir import SHARE_BYTES

Numbers = NDArray[np.uint64]

MASKING = "fed-mediffusion mask"
DEALT_BYTES = 2 * SHARE_BYTES + SEALED_BYTES
"""A sealed pair of shares."""


@dataclass(frozen=True)
class PublicKeys:
    """The public keys of one site for one sum."""

    masking: bytes
    sealing: bytes


class Stage(StrEnum):
    """The last answer that a site gave in a round."""

    ADVERTISED = "advertised"
    DEALT = "dealt"
    MASKED = "masked"


@dataclass
class SiteRound:
    """The secrets of one site in one round. Each answer is given once and in this order.

    Every method raises `RefusedError` for a message out of order or of a form that would tell more.
    """

    number: int
    """Of the round."""
    sites: int
    """Largest number of sites."""
    threshold: int
    """k, the least number of sites that each stage needs."""
    masking: str
    sealing: str
    """Private keys, as hexadecimal digits; so are all secrets here."""
    stage: Stage = Stage.ADVERTISED
    roster: list[tuple[str, str]] = field(default_factory=list)
    own_key: str = ""
    """b_i."""
    shares: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By site, this site's shares of its b and of its private key."""

    @classmethod
    def begun(cls, number: int, sites: int, threshold: int) -> Self:
        """A round with new key pairs."""
        masking, sealing = new_key_pair().private.hex(), new_key_pair().private.hex()
        return cls(number, sites, threshold, masking, sealing)

    @classmethod
    def parsed(cls, text: str) -> Self:
        """The round that `text` gave.

        Raises:
            ValueError: for another text.
        """
        try:
            given: dict[str, Any] = json.loads(text)
            given["stage"] = Stage(given["stage"])
            given["roster"] = [(one, other) for one, other in given["roster"]]
            given["shares"] = {int(n): (one, other) for n, (one, other) in given["shares"].items()}
            return cls(**given)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no round: {error}") from None

    def text(self) -> str:
        """The round, with its secrets."""
        return json.dumps(asdict(self))

    def public_keys(self) -> PublicKeys:
        """The public keys that the site advertises."""
        return PublicKeys(self._masking.public, self._sealing.public)

    def deal(self, roster: Sequence[PublicKeys]) -> list[bytes]:
        """Deals shares of this site's two secrets.

        Args:
            roster: Public keys of all sites of the round, this one among them.

        Returns:
            For each site of the roster its sealed shares; zeros for this site.
        """
        self._refuse_unless(Stage.ADVERTISED)
        keys = [key for one in roster for key in (one.masking, one.sealing)]
        if not self.threshold <= len(roster) <= self.sites:
            raise RefusedError(
                f"a roster of {len(roster)} sites; allowed are {self.threshold} to {self.sites}"
            )
        if len(set(keys)) < len(keys) or self.public_keys() not in roster:
            raise RefusedError("a roster without this site's keys, or with one key twice")
        self._refuse_weak(keys)
        self.roster = [(one.masking.hex(), one.sealing.hex()) for one in roster]
        self.own_key = os.urandom(KEY_BYTES).hex()
        parts = zip(
            self._split(bytes.fromhex(self.own_key)),
            self._split(self._masking.private),
            strict=True,
        )
        dealt = []
        for other, (of_key, of_private) in enumerate(parts):
            if other == self._place:
                self.shares[other] = (of_key.hex(), of_private.hex())
                dealt.append(bytes(DEALT_BYTES))
            else:
                dealt.append(seal(self._sealing_key(self._place, other), of_key + of_private))
        self.stage = Stage.DEALT
        return dealt

    def mask(self, dealt: Mapping[int, bytes], vector: Numbers) -> Numbers:
        """The site's masked vector (d,); the keys that masked it are deleted.

        Args:
            dealt: By site, the sealed shares for this one: of all that dealt, but this site.
            vector: (d,) modulo 2⁶⁴.
        """
        opened = self._opened(dealt)
        masked = vector + mask(bytes.fromhex(self.own_key), len(vector))
        for other, shares in sorted(opened.items()):
            masked = masked + pair_mask(
                self._masking,
                bytes.fromhex(self.roster[other][0]),
                self._place < other,
                len(vector),
            )
            self.shares[other] = (shares[:SHARE_BYTES].hex(), shares[SHARE_BYTES:].hex())
        self.stage, self.own_key, self.masking = Stage.MASKED, "", ""
        return masked

    def refuse_dealt(self, dealt: Mapping[int, bytes]) -> None:
        """Refuses sealed shares of too few sites, of this one, or that cannot be opened.

        To be called before the vector is computed and charged; `mask` refuses them too.
        """
        self._opened(dealt)

    def _opened(self, dealt: Mapping[int, bytes]) -> dict[int, bytes]:
        """By site, the pair of shares for this one; refuses as `refuse_dealt` does."""
        self._refuse_unless(Stage.DEALT)
        if len(dealt) + 1 < self.threshold:
            raise RefusedError(f"shares of {len(dealt) + 1} sites; {self.threshold} are needed")
        opened = {}
        for other, sealed in dealt.items():
            if other == self._place or not 0 <= other < len(self.roster):
                raise RefusedError("shares of a site that is not another one of the roster")
            try:
                opened[other] = unseal(self._sealing_key(other, self._place), sealed)
            except ValueError:
                raise RefusedError(f"sealed shares of site {other} cannot be opened") from None
        return opened

    def reveal(self, answered: Sequence[int]) -> dict[int, bytes]:
        """Shares, by site: of b where its vector arrived, else of its private key.

        Args:
            answered: The sites with vectors in the sum.
        """
        self._refuse_unless(Stage.MASKED)
        arrived = set(answered)
        if len(arrived) < self.threshold or arrived - self.shares.keys():
            raise RefusedError(
                f"a sum over {len(arrived)} sites that dealt shares; {self.threshold} are needed"
            )
        if self._place not in arrived:
            raise RefusedError("a sum without this site, which has sent its masked vector")
        return {
            site: bytes.fromhex(of_key if site in arrived else of_private)
            for site, (of_key, of_private) in self.shares.items()
        }

    @property
    def _masking(self) -> KeyPair:
        return KeyPair.of(bytes.fromhex(self.masking))

    @property
    def _sealing(self) -> KeyPair:
        return KeyPair.of(bytes.fromhex(self.sealing))

    @property
    def _place(self) -> int:
        return [sealing for _, sealing in self.roster].index(self._sealing.public.hex())

    def _sealing_key(self, sender: int, receiver: int) -> bytes:
        """The key of shares from one site to another, one of them this site."""
        other = receiver if sender == self._place else sender
        # Sites that were sent different rosters have different keys.
        whole = fingerprint(roster=self.roster)
        purpose = f"fed-mediffusion shares {sender} to {receiver} of {whole}"
        return agreed_key(self._sealing, bytes.fromhex(self.roster[other][1]), purpose)

    def _refuse_weak(self, keys: Sequence[bytes]) -> None:
        """Refuses public keys of small order, before a sum is computed and charged."""
        try:
            for key in keys:
                agreed_key(self._masking, key, MASKING)
        except ValueError:
            raise RefusedError("a roster with a public key of small order") from None

    def _split(self, secret: bytes) -> list[bytes]:
        return shamir.split(secret, len(self.roster), self.threshold)

    def _refuse_unless(self, stage: Stage) -> None:
        if self.stage is not stage:
            raise RefusedError(f"a message after {self.stage} that belongs after {stage}")


def pair_mask(own: KeyPair, other: bytes, first: bool, length: int) -> Numbers:
    """The mask (length,) of a pair of sites, as the site with the pair `own` adds it.

    Args:
        own: The masking keys of one site.
        other: The other one's public masking key.
        first: Whether `own` is before the other one in the roster.
        length: d.
    """
    drawn = mask(agreed_key(own, other, MASKING), length)
    return drawn if first else np.uint64(0) - drawn
