"""The audit log of a server or a site: who asked for what, on which data, when, and the outcome.

The log is a file of JSON lines. Each line has a number, the digest of the line before it, and its
own digest over both and its fields. The tip, the last line's number and digest, stands in a second
file. A line is on the disk before the event goes on: `append` returns after fsync, or raises.

`verify` notices a changed, removed or inserted line; lines cut off at the end; an older copy of the
file. A file that is moved away (log rotation) is continued in a new one, whose first line follows
the last one of the old file. `verify` does not notice a program that may write both files and
computes the whole chain again, since the chain has no key. Only a tip kept elsewhere shows that,
such as the one that syslog received with each line, or that `audit verify` printed.
"""

import json
import logging
import logging.handlers
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from mediffusion_core.common.errors import AuditError
from mediffusion_core.common.hash_chain import Tip, first_digest, next_digest, read_tip, write_tip
from mediffusion_core.common.logs import log

AUDIT = "FED_MEDIFFUSION_AUDIT"
"""Environment variable with the path of the log; without it nothing is logged."""
SYSLOG = "FED_MEDIFFUSION_SYSLOG"
"""Environment variable: the socket of a local syslog, or HOST:PORT of one that takes UDP. It
receives each line too."""

LONGEST = 64 * 1024
"""Bytes of a line, at most."""
SHORT = 256
"""Characters of a value; a server may send longer ones."""
EMPTY = first_digest("fed-mediffusion audit 1")
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Line:
    """One line of a log.

    Attributes:
        number: From 1, over all files of the log.
        before: Digest of the line before.
        fields: Time and event, and what the event has.
        digest: Of the line.
    """

    number: int
    before: str
    fields: dict[str, Value]
    digest: str

    @classmethod
    def parse(cls, text: str) -> "Line":
        """Reads a line.

        Raises:
            ValueError: if it is no line of a log, or its digest is not that of its content.
        """
        given = json.loads(text)
        if not isinstance(given, dict) or not {"number", "before", "digest"} <= set(given):
            raise ValueError("no line of an audit log")
        number, before, digest = given.pop("number"), given.pop("before"), given.pop("digest")
        if next_digest(before, [number, given]) != digest:
            raise ValueError("the digest is not that of the line")
        return cls(number, before, given, digest)

    def __str__(self) -> str:
        content = {"number": self.number, **self.fields}
        return json.dumps({**content, "before": self.before, "digest": self.digest})


@dataclass(frozen=True)
class AuditLog:
    """The log in a file, with its tip beside it."""

    path: Path

    @classmethod
    def of_environment(cls) -> "AuditLog | None":
        """The log of this machine; None where it keeps none."""
        given = os.environ.get(AUDIT)
        return cls(Path(given)) if given else None

    @property
    def tip_path(self) -> Path:
        """File of the tip."""
        return self.path.with_name(f"{self.path.name}.tip")

    def append(self, event: str, **fields: Value) -> Tip:
        """Writes one line; it is on the disk when this returns, and with syslog on its way there.

        Args:
            event: Name of the event.
            fields: What happened, without paths, patients and texts of errors.

        Raises:
            AuditError: if the line can't be written, or the file does not end with the tip.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                tip = self._tip()
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
                content: dict[str, Value] = {"time": now, "event": event}
                content |= {name: _short(value) for name, value in fields.items()}
                number = tip.count + 1
                digest = next_digest(tip.digest, [number, content])
                line = Line(number, tip.digest, content, digest)
                self._write(str(line))
                write_tip(self.tip_path, Tip(number, digest))
        except OSError as error:
            raise AuditError(
                f"the audit log {self.path} can't be written: {error.strerror}"
            ) from None
        if address := os.environ.get(SYSLOG):
            _send(address, str(line))
        return Tip(number, digest)

    def _write(self, text: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _tip(self) -> Tip:
        """The tip, which the file must end with.

        A process that is killed may leave a part of a line, or a line whose tip was not written.
        The former was never acknowledged and is cut off, the latter counts.
        """
        try:
            kept = read_tip(self.tip_path)
        except ValueError:
            raise AuditError(f"the tip {self.tip_path} of the audit log is damaged") from None
        last = self._last_line()
        if last is None:  # a new log, or one whose file was moved away
            return kept or Tip(0, EMPTY)
        if kept is None and last.number > 1:
            raise AuditError(f"the tip {self.tip_path} of the audit log is gone")
        tip = kept or Tip(0, EMPTY)
        if (last.number, last.digest) == (tip.count, tip.digest):
            return tip
        if (last.number, last.before) == (tip.count + 1, tip.digest):
            return Tip(last.number, last.digest)
        raise AuditError(
            f"the audit log {self.path} ends with line {last.number}, its tip is of line "
            f"{tip.count}: lines were cut off, or the file is an older copy; move both away"
        )

    def _last_line(self) -> Line | None:
        """The last whole line; cuts off a part of a line behind it."""
        if not self.path.is_file():
            return None
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LONGEST))
            whole, newline, rest = file.read().rpartition(b"\n")
            if rest:
                file.truncate(size - len(rest))
            text = whole.rpartition(b"\n")[2]
        if not newline:
            return None
        try:
            return Line.parse(text.decode())
        except ValueError as error:
            raise AuditError(f"the last line of the audit log {self.path}: {error}") from None


class AuditTail:
    """Follows a log, without verifying its chain."""

    def __init__(self, path: Path) -> None:
        """Takes the file of the log."""
        self._path = path
        self._file, self._position = 0, 0

    def new_lines(self) -> Iterator[Line]:
        """The whole lines since the last call; of a file that took its place, all."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._position:
                self._file, self._position = status.st_ino, 0
            file.seek(self._position)
            for text in file:
                if not text.endswith(b"\n"):
                    return
                self._position += len(text)
                with suppress(ValueError):
                    yield Line.parse(text.decode())


def read_lines(paths: Sequence[Path]) -> Iterator[Line]:
    """The lines of a log's files, oldest file first, verified.

    Raises:
        OSError: if a file can't be read.
        AuditError: at the first line that does not follow from the one before it.
    """
    before: Line | None = None
    for path in paths:
        for position, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            where = f"{path}, line {position}"
            try:
                line = Line.parse(text)
            except ValueError as error:
                raise AuditError(f"{where}: {error}") from None
            if before is None:
                first = line.number > 1 or line.before == EMPTY
            else:
                first = (line.number, line.before) == (before.number + 1, before.digest)
            if not first:
                raise AuditError(f"{where}: entry {line.number} does not follow the one before it")
            before = line
            yield line


def _short(value: Value) -> Value:
    return value[:SHORT] if isinstance(value, str) else value


class _Syslog(logging.handlers.SysLogHandler):
    """Says that a line was not sent. The log counts, so an unreachable syslog ends nothing."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        log.error(f"audit: syslog {self.address} can't be reached")


def _send(address: str, line: str) -> None:
    try:
        _syslog(address).info(line)
    except OSError as error:  # a host without an address
        log.error(f"audit: syslog {address}: {error.strerror}")


@cache
def _syslog(address: str) -> logging.Logger:
    host, _, port = address.rpartition(":")
    target: Any = (host, int(port)) if host and port.isdigit() else address
    logger = logging.getLogger("fed-mediffusion.audit")
    handler = _Syslog(target, logging.handlers.SysLogHandler.LOG_AUTHPRIV)
    handler.setFormatter(logging.Formatter("fed-mediffusion: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger
