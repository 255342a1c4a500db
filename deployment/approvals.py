"""Runs that a site's engineer has approved, and runs that wait for approval.

With `policy.approval = "required"` in its site file a site runs approved code only: a run approved
by its hash, or all runs of a bundle approved by its SHA-256. The record is a file below
$XDG_DATA_HOME, like the site's privacy ledger. A site without the record has approved nothing.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from deployment.signing import (
    BundleRefusedError,
    Settings,
    Sha256,
    Whole,
    run_hash,
    settings_digest,
)
from deployment.site_record import SiteRecord
from mediffusion_core.common.files import data_folder

MOST_PENDING = 100
"""Waiting runs that the record keeps; the oldest one makes room."""


class Asked(BaseModel):
    """A run that waits: the bundle's SHA-256, the run's configuration, and when it first came."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bundle: Sha256
    settings: dict[str, bool | int | float | str]
    since: Whole


class Record(BaseModel):
    """Approved hashes with the last second of their approval, None without one; waiting runs."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    approved: dict[Sha256, Whole | None] = {}
    pending: Annotated[dict[Sha256, Asked], Field(max_length=MOST_PENDING)] = {}


@dataclass(frozen=True)
class Approvals:
    """The record of approvals in a file."""

    path: Path

    @classmethod
    def of_site(cls) -> "Approvals":
        """The record of this site."""
        return cls(data_folder() / "approvals.json")

    def require(self, bundle: str, settings: Settings) -> None:
        """Refuses a run that was not approved, and keeps it among the waiting ones.

        Args:
            bundle: SHA-256 of the app bundle.
            settings: The run's configuration.

        Raises:
            BundleRefusedError: if neither run nor bundle has an approval, or it has expired, or the
                record can't be used.
        """
        run = run_hash(bundle, settings_digest(settings))
        try:
            record = self.read()
        except OSError as error:
            raise BundleRefusedError(
                f"the site's record of approvals can't be used: {error.strerror}"
            ) from None
        now = int(time.time())
        for approved in (run, bundle):
            if approved in record.approved and now <= (record.approved[approved] or now):
                return
        if run not in record.pending:
            shown = {name: value for name, value in settings.items() if name != "signature"}
            self._wait(run, Asked(bundle=bundle, settings=shown, since=now))
        raise BundleRefusedError(
            f"run {run} is not approved at this site; its engineer approves it with "
            f"fed-mediffusion-site approve {run}"
        )

    def approve(self, digest: str, until: int | None) -> None:
        """Approves a run or a bundle.

        Args:
            digest: Hash of the run, or SHA-256 of the bundle.
            until: Last second of the approval, since the epoch; None for no end.

        Raises:
            BundleRefusedError: if the record can't be used.
        """

        def approved(record: Record) -> Record:
            waiting = {
                run: asked
                for run, asked in record.pending.items()
                if digest not in (run, asked.bundle)
            }
            return Record(approved=record.approved | {digest: until}, pending=waiting)

        self._record.change(Record(), approved)

    def withdraw(self, digest: str) -> bool:
        """Withdraws an approval; returns whether there was one.

        Raises:
            BundleRefusedError: if the record can't be used.
        """
        found: list[str] = []

        def withdrawn(record: Record) -> Record:
            found.extend(one for one in record.approved if one == digest)
            left = {one: until for one, until in record.approved.items() if one != digest}
            return Record(approved=left, pending=record.pending)

        self._record.change(Record(), withdrawn)
        return bool(found)

    def read(self) -> Record:
        """The record; empty without a file.

        Raises:
            OSError: if the file can't be read.
            BundleRefusedError: if the file is no such record.
        """
        return self._record.read(Record())

    def _wait(self, run: str, asked: Asked) -> None:
        def waiting(record: Record) -> Record:
            kept = dict(list(record.pending.items())[-(MOST_PENDING - 1) :])
            return Record(approved=record.approved, pending=kept | {run: asked})

        self._record.change(Record(), waiting)

    @property
    def _record(self) -> SiteRecord[Record]:
        return SiteRecord(self.path, TypeAdapter(Record), "approvals")
