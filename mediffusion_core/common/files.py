"""Files that outlast a run: where a user's data lies, and writes that outlast a loss of power."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OWNER_ALONE = 0o600


def sync(path: Path) -> None:
    """Puts a file's bytes, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished(path: Path) -> Path:
    """The file or folder that a process leaves if it is killed while it replaces the given one."""
    return path.with_name(f".{path.name}.new")


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Replaces a file in one piece; it is on the disk when the block ends.

    Callers take turns: two at once would write one temporary file.

    Args:
        path: Of the file; its folder exists.
        mode: Permissions of the new file, as far as the process's umask allows them.

    Yields:
        The empty file to write to.
    """
    temporary = unfinished(path)
    temporary.unlink(missing_ok=True)
    temporary.touch(mode)
    yield temporary
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file as `replacing`, readable by its owner alone, as is a folder that it makes."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(path, _OWNER_ALONE) as temporary:
        temporary.write_bytes(content)


def data_folder() -> Path:
    """The user's data folder of this project, below $XDG_DATA_HOME where it is set."""
    given = os.environ.get("XDG_DATA_HOME")
    return (Path(given) if given else Path.home() / ".local" / "share") / "fed-mediffusion"
