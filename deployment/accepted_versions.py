"""The highest signed version that a site has accepted of each signer.

The record is a file on the site's own disk, below $XDG_DATA_HOME like the site's privacy ledger,
or at $FED_MEDIFFUSION_ACCEPTED_VERSIONS. Without it older versions pass again until they expire.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from deployment.signing import BundleRefusedError, Sha256, Whole
from mediffusion_core.common.files import sync

PLACE = "FED_MEDIFFUSION_ACCEPTED_VERSIONS"
"""Environment variable with the record's path."""


class Accepted(BaseModel):
    """A version, and the SHA-256 of the bundle that came with it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Whole
    bundle: Sha256


_RECORD = TypeAdapter(dict[Sha256, Accepted])
"""What was accepted last, by signer."""


@dataclass(frozen=True)
class AcceptedVersions:
    """The record in a file."""

    path: Path

    @classmethod
    def of_site(cls) -> "AcceptedVersions":
        """Where this site keeps it."""
        if given := os.environ.get(PLACE):
            return cls(Path(given))
        data = os.environ.get("XDG_DATA_HOME")
        folder = Path(data) if data else Path.home() / ".local" / "share"
        return cls(folder / "fed-mediffusion" / "accepted-versions.json")

    def accept(self, signer: str, offered: Accepted) -> None:
        """Lets a version pass that is not lower than the highest one, and keeps a higher one.

        The same version passes again with the same bundle, so that a run can be continued.

        Raises:
            BundleRefusedError: for another version or bundle, and if the record can't be read or
                written.
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
        """What was accepted last, by signer; nothing where there is no file yet.

        Raises:
            OSError: if the file can't be read.
            BundleRefusedError: if it holds something else.
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
            f"the app bundle is of version {offered.version}, {before.version} was accepted before"
        )
    if offered.version == before.version:
        raise BundleRefusedError(
            f"version {offered.version} was accepted before, with another app bundle"
        )
