"""Processes that end at a chosen file operation, as by SIGKILL or by a loss of power."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Loss = Literal["nothing", "contents", "names"]
LOSSES: tuple[Loss, ...] = ("nothing", "contents", "names")
"""What is lost beside the process: nothing (SIGKILL); the contents of files that were not flushed;
and also the new names of files and folders where the folder above was not flushed."""

_OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


def cut_short(moment: int, act: Callable[[], object], root: Path, loss: Loss = "nothing") -> bool:
    """Does something in a process that ends at its n-th file operation.

    Args:
        moment: Number of file operations that are done.
        act: What to do.
        root: Folder in which something is lost.
        loss: What is lost.

    Returns:
        Whether the process was cut short.
    """
    root.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            _Disk(moment, root.resolve(), loss).watch()
            act()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), f"exit status {code}"
    return code == 9


class _Disk:
    """What is on the disk for good, as the process that was forked goes on."""

    def __init__(self, moment: int, root: Path, loss: Loss) -> None:
        self._left, self._root, self._loss = moment, root, loss
        self._flushed = set(self._files())
        self._renames: list[tuple[str, str]] = []
        self._fsync = os.fsync

    def watch(self) -> None:
        os.fsync = self._flush  # type: ignore[assignment]
        sys.addaudithook(self._count)

    def _count(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in _OPERATIONS or not str(arguments[0]).startswith(str(self._root)):
            return
        if self._left == 0:
            self._left = -1
            self._lose()
            os._exit(9)
        if self._left < 0:  # the losses themselves
            return
        self._left -= 1
        if event == "open" and int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            self._flushed.discard(str(arguments[0]))
        elif event == "os.rename":
            self._rename(str(arguments[0]), str(arguments[1]))

    def _flush(self, descriptor: int) -> None:
        self._fsync(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        self._flushed.add(name)
        self._renames = [one for one in self._renames if os.path.dirname(one[1]) != name]

    def _rename(self, old: str, new: str) -> None:
        self._renames.append((old, new))
        for name in [one for one in self._flushed if one == old or one.startswith(f"{old}/")]:
            self._flushed.discard(name)
            self._flushed.add(new + name.removeprefix(old))

    def _lose(self) -> None:
        if self._loss == "nothing":
            return
        for name in self._files():
            if name not in self._flushed:
                os.truncate(name, 0)
        for old, new in reversed(self._renames if self._loss == "names" else []):
            if os.path.exists(new) and not os.path.exists(old):
                os.rename(new, old)

    def _files(self) -> list[str]:
        return [str(path) for path in self._root.rglob("*") if path.is_file()]
