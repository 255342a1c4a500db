"""Which code made a result."""

import os
import subprocess
from pathlib import Path

COMMIT_VARIABLE = "FED_MEDIFFUSION_COMMIT"
"""Names the commit where the code runs from a copy that is no checkout."""

DIRTY = "-dirty"
"""Ends the name of a commit that the code differs from."""


def current_commit() -> str | None:
    """The commit that `COMMIT_VARIABLE` names, else that of the checkout, else none.

    `DIRTY` follows the checkout's commit where tracked files differ from it.
    """
    named = os.environ.get(COMMIT_VARIABLE)
    if named:
        return named
    file = Path(__file__).resolve()
    try:
        # A package may be installed inside another project's repository, without being tracked.
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        commit = _git(file.parent, "rev-parse", "HEAD")
        changed = _git(file.parent, "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}{DIRTY}" if changed else commit


def shorten(commit: str | None) -> str:
    """The commit's first nine digits, and whether the code differs from it."""
    if commit is None:
        return "unknown"
    digits, dirty, _ = commit.partition(DIRTY)
    return digits[:9] + dirty


def _git(folder: Path, *arguments: str) -> str:
    # Without optional locks, so that a commit made at the same moment does not fail.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
