"""The highest version that a site has accepted from each signer.

The record is a file on the site's disk: below $XDG_DATA_HOME, like the site's privacy ledger, or at
$FED_MEDIFFUSION_ACCEPTED_VERSIONS. Without the record a site accepts older versions until they
expire.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from deployment.signing import BundleRefusedError, Sha256, Whole
from deployment.site_record import SiteRecord
from mediffusion_core.common.files import data_folder

PLACE = "FED_MEDIFFUSION_ACCEPTED_VERSIONS"
"""Environment variable with the path of the record."""


class Accepted(BaseModel):
    """A version, and the SHA-256 of its bundle."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Whole
    bundle: Sha256


_FORM = TypeAdapter(dict[Sha256, Accepted])
"""The last accepted version of each signer."""


@dataclass(frozen=True)
class AcceptedVersions:
    """The record of accepted versions in a file."""

    path: Path

    @classmethod
    def of_site(cls) -> "AcceptedVersions":
        """The record of this site."""
        if given := os.environ.get(PLACE):
            return cls(Path(given))
        return cls(data_folder() / "accepted-versions.json")

    def accept(self, signer: str, offered: Accepted) -> None:
        """Accepts and records a version above the highest one.

        The highest version is accepted again with the same bundle, so that a run can be continued.

        Raises:
            BundleRefusedError: for a lower version, for the same version with another bundle, and
                if the record can't be read or written.
        """

        def accepted(before: dict[str, Accepted]) -> dict[str, Accepted]:
            if signer in before and before[signer] != offered:
                _refuse_older(before[signer], offered)
            return before | {signer: offered}

        self._record.change({}, accepted)

    def read(self) -> dict[str, Accepted]:
        """The last accepted version of each signer; empty without a file.

        Raises:
            OSError: if the file can't be read.
            BundleRefusedError: if the file is no such record.
        """
        return self._record.read({})

    @property
    def _record(self) -> SiteRecord[dict[str, Accepted]]:
        return SiteRecord(self.path, _FORM, "accepted versions")


def _refuse_older(before: Accepted, offered: Accepted) -> None:
    if offered.version < before.version:
        raise BundleRefusedError(
            f"the app bundle has version {offered.version}, {before.version} was accepted before"
        )
    if offered.version == before.version:
        raise BundleRefusedError(
            f"version {offered.version} was accepted before, with another app bundle"
        )
