"""The server's side of a masked sum: it adds masked vectors, and takes the masks off the sum."""

from collections.abc import Mapping, Sequence

import numpy as np

from mediffusion_core.privacy.secure_aggregation import shamir
from mediffusion_core.privacy.secure_aggregation.keys import KeyPair, mask
from mediffusion_core.privacy.secure_aggregation.sites import Numbers, PublicKeys, pair_mask


class MaskedSum:
    """The running sum of masked vectors. No vector is kept, so none can be unmasked alone."""

    def __init__(self, length: int) -> None:
        """Takes d."""
        self._total = np.zeros(length, dtype=np.uint64)
        self.answered: set[int] = set()
        """The sites whose vectors were added."""

    def add(self, site: int, masked: Numbers) -> None:
        """Adds a site's vector (d,) modulo 2⁶⁴.

        Raises:
            ValueError: if the site's vector was added before.
        """
        if site in self.answered:
            raise ValueError(f"a second vector of site {site}")
        self.answered.add(site)
        self._total += masked

    def unmasked(
        self,
        roster: Sequence[PublicKeys],
        dealt: Sequence[int],
        revealed: Sequence[Mapping[int, bytes]],
        threshold: int,
    ) -> Numbers:
        """The sum of the vectors (d,) that were added.

        Args:
            roster: Public keys of all sites of the round.
            dealt: The sites that dealt shares.
            revealed: By site of the roster, the shares of its secret, by the site that gave them.
            threshold: k.

        Raises:
            ValueError: if shares are too few or false.
        """
        total, length = self._total, len(self._total)
        for site in dealt:
            shares = sorted(revealed[site].items())[:threshold]
            if len(shares) < threshold:
                raise ValueError(f"{len(shares)} shares of a secret, and {threshold} are needed")
            secret = shamir.combine(dict(shares))
            if site in self.answered:
                total = total - mask(secret, length)
                continue
            pair = KeyPair.of(secret)
            if pair.public != roster[site].masking:
                raise ValueError("false shares of a private key")
            for other in self.answered:
                # The masks that the others added for a site that added none.
                total = total - (
                    np.uint64(0) - pair_mask(pair, roster[other].masking, site < other, length)
                )
        return total
