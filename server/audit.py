"""Lines of a run in the server's audit log, where the server keeps one."""

from collections.abc import Iterator
from contextlib import contextmanager

from mediffusion_core.common.audit_log import AuditLog, Value


class RunAudit:
    """The audit of one run: its start, its end, and the outcome of each message to a site."""

    def __init__(self, run: str, settings_hash: str) -> None:
        """Takes Flower's id of the run, and the hash of its settings."""
        self._log = AuditLog.of_environment()
        self._run = {"at": "server", "run": run, "settings_hash": settings_hash}

    @property
    def kept(self) -> bool:
        """Whether the server keeps a log."""
        return self._log is not None

    def write(self, event: str, **fields: Value) -> None:
        """Writes a line; it is on the disk when this returns.

        Raises:
            AuditError: if it can't be written.
        """
        if self._log is not None:
            self._log.append(event, **self._run, **fields)

    @contextmanager
    def started(self, folder: str) -> Iterator[None]:
        """Writes that the run has started, and how it ended.

        Args:
            folder: Name of the run's folder.

        Raises:
            AuditError: if a line can't be written.
        """
        self.write("run", outcome="started", folder=folder)
        try:
            yield
        except BaseException:
            self.write("run", outcome="failed", folder=folder)
            raise
        self.write("run", outcome="completed", folder=folder)
