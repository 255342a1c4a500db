"""The highest version that a site has accepted from each signer.

The record is a file on the site's disk: below $XDG_DATA_HOME, like the site's privacy ledger, or at
$FED_MEDIFFUSION_ACCEPTED_VERSIONS. Without the record a site accepts older versions until they
expire.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from deployment.signing import BundleRefusedError, Sha256, Whole
from mediffusion_core.common.files import data_folder, sync

PLACE = "FED_MEDIFFUSION_ACCEPTED_VERSIONS"
"""Environment variable with the path of the record."""


class Accepted(BaseModel):
    """A version, and the SHA-256 of its bundle."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Whole
    bundle: Sha256


_RECORD = TypeAdapter(dict[Sha256, Accepted])
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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                accepted = self.read()
                before = accepted.get(signer)
                if before == offered:
                    return
                if before is not None:
                    _refuse_older(before, offered)
                self._write(accepted | {signer: offered})
        except OSError as error:
            raise BundleRefusedError(
                f"the site's record of accepted versions can't be used: {error.strerror}"
            ) from None

    def read(self) -> dict[str, Accepted]:
        """The last accepted version of each signer; empty without a file.

        Raises:
            OSError: if the file can't be read.
            BundleRefusedError: if the file is no such record.
        """
        try:
            return _RECORD.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError:
            raise BundleRefusedError("the site's record of accepted versions is damaged") from None

    def _write(self, accepted: dict[str, Accepted]) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_RECORD.dump_json(accepted))
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, self.path)
        sync(self.path.parent)


def _refuse_older(before: Accepted, offered: Accepted) -> None:
    if offered.version < before.version:
        raise BundleRefusedError(
            f"the app bundle has version {offered.version}, {before.version} was accepted before"
        )
    if offered.version == before.version:
        raise BundleRefusedError(
            f"version {offered.version} was accepted before, with another app bundle"
        )
