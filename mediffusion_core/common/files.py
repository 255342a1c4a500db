"""Files that outlast a run: where a user's data lies, and writes that outlast a loss of power."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Puts a file's bytes, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def data_folder() -> Path:
    """The user's data folder of this project, below $XDG_DATA_HOME where it is set."""
    given = os.environ.get("XDG_DATA_HOME")
    return (Path(given) if given else Path.home() / ".local" / "share") / "fed-mediffusion"
