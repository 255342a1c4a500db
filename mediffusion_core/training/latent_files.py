"""Files of encoded images at a site, and how long they stay."""

import time
from pathlib import Path
from typing import Literal

LATENTS = "latents.safetensors"
UNFINISHED = "latents.tmp"
"""What a process that was killed while it encoded leaves."""
LEFT_OVER = 7
"""Days after which files of a run that did not end are deleted, where they stay until its end."""
DAY = 24 * 60 * 60


def expire_latents(runs: Path, keep: int | Literal["run"]) -> list[Path]:
    """Deletes latents that no run has used for too long.

    Args:
        runs: Folder of a site's runs; each has `sites/SITE`.
        keep: Days after the last use, or until the run ends.

    Returns:
        The deleted files.
    """
    oldest = time.time() - (LEFT_OVER if keep == "run" else keep) * DAY
    expired = [
        path
        for name in (LATENTS, UNFINISHED)
        for path in runs.glob(f"*/sites/*/{name}")
        if path.stat().st_mtime < oldest
    ]
    for path in expired:
        path.unlink(missing_ok=True)
    return expired
