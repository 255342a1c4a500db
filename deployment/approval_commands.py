"""`fed-mediffusion site approve`, `pending` and `approvals`."""

import hashlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from deployment.approvals import Approvals, Record
from deployment.signing import BundleRefusedError
from mediffusion_core.common.errors import UserError

DAY = 24 * 60 * 60


def approve_run(run: str, days: int | None) -> str:
    """Approves a run or a bundle, and returns one line.

    Args:
        run: Hash of a run, or file or SHA-256 of a bundle.
        days: Validity; None for no end.

    Raises:
        UserError: if `run` is neither, or the record can't be used.
    """
    digest = _digest(run)
    until = None if days is None else int(time.time()) + days * DAY
    try:
        Approvals.of_site().approve(digest, until)
    except BundleRefusedError as error:
        raise UserError(str(error)) from None
    return f"approved {digest}{_until(until)}"


def withdraw_approval(run: str) -> str:
    """Withdraws the approval of a run or a bundle, and returns one line.

    Raises:
        UserError: if there is none, and as `approve_run`.
    """
    digest = _digest(run)
    try:
        if not Approvals.of_site().withdraw(digest):
            raise UserError(f"{digest} is not approved; fed-mediffusion site approvals lists all")
    except BundleRefusedError as error:
        raise UserError(str(error)) from None
    return f"withdrew the approval of {digest}"


def approved_runs() -> Iterator[str]:
    """One line for each approved run or bundle.

    Raises:
        UserError: if the record can't be used.
    """
    for digest, until in _record().approved.items():
        yield f"{digest}{_until(until)}"


def pending_runs() -> Iterator[str]:
    """The waiting runs, each with its bundle and its settings.

    Raises:
        UserError: if the record can't be used.
    """
    for run, asked in _record().pending.items():
        yield f"{run}"
        yield f"  since {_time(asked.since)}, bundle {asked.bundle}"
        # From the server: shown as text, so that it moves no cursor.
        yield from (f"  {name!r} = {value!r}" for name, value in asked.settings.items())


def _record() -> Record:
    approvals = Approvals.of_site()
    try:
        return approvals.read()
    except BundleRefusedError as error:
        raise UserError(f"{approvals.path}: {error}") from None


def _digest(run: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", run):
        return run
    if not Path(run).is_file():
        raise UserError(f"{run} is neither a hash of 64 hexadecimal digits nor an app bundle")
    return hashlib.sha256(Path(run).read_bytes()).hexdigest()


def _until(until: int | None) -> str:
    if until is None:
        return ""
    return f"{' expired' if until < time.time() else ' until'} {_time(until)}"


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
