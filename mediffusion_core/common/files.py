"""Files that outlast a run: where a user's data lies, and writes that outlast a loss of power."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Puts a file's bytes, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file takes the place of another one, whole, and on the disk when the block ends.

    Two processes that replace the same file at once must take turns.

    Yields:
        The path to write the new file to.
    """
    temporary = path.with_name(f".{path.name}.new")
    yield temporary
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def data_folder() -> Path:
    """The user's data folder of this project, below $XDG_DATA_HOME where it is set."""
    given = os.environ.get("XDG_DATA_HOME")
    return (Path(given) if given else Path.home() / ".local" / "share") / "fed-mediffusion"
