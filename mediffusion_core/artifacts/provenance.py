"""Which code made a result."""

import os
import subprocess
from pathlib import Path

COMMIT_VARIABLE = "FED_MEDIFFUSION_COMMIT"
"""Names the commit where the code runs from a copy that is no checkout."""


def current_commit() -> str | None:
    """The commit that `COMMIT_VARIABLE` names, else that of the checkout, else none."""
    named = os.environ.get(COMMIT_VARIABLE)
    if named:
        return named
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
