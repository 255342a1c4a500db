"""Deletion of a site's encoded images by its policy, also where no run comes any more."""

import threading
from pathlib import Path

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import log
from mediffusion_core.settings.site_file import SiteFile
from mediffusion_core.training.latent_files import expire_latents

PERIOD = 60 * 60.0
"""Seconds between two looks."""


def watch_latents(runs: Path, site_file: Path) -> threading.Thread:
    """Deletes expired latents now and every hour, in a daemon thread."""
    watcher = threading.Thread(target=_follow, args=(runs, site_file), daemon=True)
    watcher.start()
    return watcher


def _follow(runs: Path, site_file: Path) -> None:
    pause = threading.Event()
    while True:
        try:
            for path in expire_latents(runs, SiteFile.read(site_file).policy.keep_latents):
                log.info(f"latents: deleted {path}, by policy.keep_latents")
        except (OSError, UserError) as error:
            log.error(f"latents: nothing is deleted: {error}")
        pause.wait(PERIOD)
