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


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file in one piece, readable by its owner alone; on the disk when this returns.

    Callers take turns: two at once would write one temporary file.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)
