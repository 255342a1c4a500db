"""A site's answers in a round of secure aggregation. Its secrets lie on its disk between messages.

The file has the secrets of one round alone. A new round replaces it, and the last answer of a round
removes it. It is written before an answer leaves, so that no answer is given twice.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site import Site
from mediffusion_core.common.errors import RefusedError
from mediffusion_core.common.files import sync, write_durably
from mediffusion_core.privacy.secure_aggregation.shamir import SHARE_BYTES
from mediffusion_core.privacy.secure_aggregation.sites import PublicKeys, SiteRound

StateDict = Mapping[str, Tensor]

FILE = "secure_round.json"


class RoundFile:
    """The secrets of a site's round, in its folder.

    Every method raises `RefusedError` for messages out of order, of another round, or in a run
    without secure aggregation.
    """

    def __init__(self, site: Site, number: int) -> None:
        """Takes the site and the number of the round."""
        if not site.settings.privacy.secure_aggregation.enabled:
            raise RefusedError("without privacy.secure_aggregation no sums are masked")
        self._number, self._settings = number, site.settings
        self._path = site.folder / FILE

    def advertise(self) -> dict[str, Tensor]:
        """Begins the round; the secrets of a former one are gone. Public `keys` (2, 32)."""
        sites, threshold = self._settings.num_participants, self._settings.counted_sites
        begun = SiteRound.begun(self._number, sites, threshold)
        self._write(begun)
        public = begun.public_keys()
        return {"keys": _bytes([public.masking, public.sealing])}

    def deal(self, roster: StateDict) -> dict[str, Tensor]:
        """For the roster's `keys` (n, 2, 32) the site's `sealed` shares (n, 148)."""
        current = self._read()
        keys = [PublicKeys(*map(_of, one)) for one in roster["keys"]]
        dealt = current.deal(keys)
        self._write(current)
        return {"sealed": _bytes(dealt)}

    def refuse(self, dealt: StateDict) -> None:
        """Refuses shares with which the site would mask nothing."""
        self._read().refuse_dealt(_sealed(dealt))

    def mask(self, dealt: StateDict, vector: NDArray[np.uint64]) -> dict[str, Tensor]:
        """The masked `sum` (d,).

        Args:
            dealt: `sealed` (n, 148) shares for this site, and who dealt them, `present` (n,).
            vector: (d,) modulo 2⁶⁴.
        """
        current = self._read()
        masked = current.mask(_sealed(dealt), vector)
        self._write(current)
        return {"sum": torch.from_numpy(masked.view(np.int64))}

    def reveal(self, answered: StateDict) -> dict[str, Tensor]:
        """The site's `shares` (n, 66), for the sites (n,) whose masked sums arrived."""
        current = self._read()
        shares = current.reveal(answered["sites"].nonzero().flatten().tolist())
        self._path.unlink()
        sync(self._path.parent)  # the file must not come back after a power failure
        count = len(current.roster)
        return {"shares": _bytes([shares.get(site, bytes(SHARE_BYTES)) for site in range(count)])}

    def _read(self) -> SiteRound:
        try:
            current = SiteRound.parsed(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise RefusedError("no round of secure aggregation has begun here") from None
        if current.number != self._number:
            raise RefusedError(f"round {current.number} has begun here, not {self._number}")
        return current

    def _write(self, current: SiteRound) -> None:
        write_durably(self._path, current.text().encode())


def _bytes(parts: list[bytes]) -> Tensor:
    """Texts of one length as rows (n, length) of a tensor."""
    return torch.stack([torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in parts])


def _of(row: Tensor) -> bytes:
    return row.numpy().tobytes()


def _sealed(dealt: StateDict) -> dict[int, bytes]:
    """By site, the sealed shares for this one."""
    present = dealt["present"].nonzero().flatten().tolist()
    return {site: _of(dealt["sealed"][site]) for site in present}
