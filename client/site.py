"""What a site is, seen from itself: its images, its folder, its log."""

import json
import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context

from configs.compose import compose, split
from mediffusion_core.artifacts.run_folder import run_path
from mediffusion_core.data.hospitals import Hospitals, open_hospitals
from mediffusion_core.errors import UserError
from mediffusion_core.settings import Settings
from mediffusion_core.training.local import Progress, resolve_device


@dataclass(frozen=True)
class Site:
    """One simulated hospital: number `index` of the partition."""

    settings: Settings
    hospitals: Hospitals
    index: int
    folder: Path

    @property
    def name(self) -> str:
        """The site's name in the partition."""
        return self.hospitals.shards[self.index].site

    @property
    def device(self) -> torch.device:
        """Where the site computes."""
        return resolve_device(self.settings.device)

    def progress(self, stage: str, round_number: int) -> Progress:
        """A callback that keeps `progress.json` in the site's folder, at most twice a second."""
        path = self.folder / "progress.json"
        last = 0.0

        def report(step: int, steps: int, loss: float) -> None:
            nonlocal last
            now = time.time()
            if now - last < 0.5 and step < steps:
                return
            last = now
            entry = {"site": self.name, "stage": stage, "round": round_number, "time": now}
            entry |= {"step": step, "steps": steps, "loss": loss}
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(entry))
            temporary.replace(path)

        return report


def open_site(context: Context) -> Site:
    """The site that this context belongs to.

    Raises:
        UserError: if its settings do not compose, or its images cannot be opened.
    """
    config = context.run_config
    settings, hospitals = _opened(str(config["config-name"]), str(config["overrides"]))
    # A simulated site has its share of the cores: with more threads, sites block each other.
    torch.set_num_threads(max(1, int(settings.federation.cpus_per_site)))
    index = int(context.node_config["partition-id"])
    if index >= len(hospitals.shards):
        raise UserError(f"partition {index} asked for, but there are {len(hospitals.shards)} sites")
    folder = run_path(settings.run, context.run_id) / "sites" / hospitals.shards[index].site
    folder.mkdir(parents=True, exist_ok=True)
    return Site(settings, hospitals, index, folder)


@lru_cache(maxsize=1)
def _opened(config_name: str, overrides: str) -> tuple[Settings, Hospitals]:
    settings = compose(config_name, split(overrides))
    return settings, open_hospitals(settings)


def site_log(folder: Path | None) -> logging.Logger:
    """The site's own log, in its folder where it has one; error texts stay here."""
    logger = logging.getLogger(f"fed-mediffusion.site.{folder}")
    if folder and not logger.handlers:
        handler = logging.FileHandler(folder / "site.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
