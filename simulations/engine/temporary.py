"""The folder of a run's temporary files."""

import tempfile

_LONGEST = 20  # Ray's socket paths below it must stay under 108 characters


def temporary_root() -> str:
    """The system's folder for temporary files, or /tmp where its path is too long for Ray."""
    root = tempfile.gettempdir()
    return root if len(root) <= _LONGEST else "/tmp"
