"""One site: its images, its folder and its log."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from flwr.app import Context

from client.node_configuration import (
    DATA_ROOT,
    DEVICE,
    FOLDER,
    SITE_FILE,
    own_folder,
    own_ledger,
    own_settings,
    own_threads,
)
from client.site_policy import open_own
from configs.compose import compose, split
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import replacing
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
    require_unit,
)
from mediffusion_core.privacy.ledger.site_ledger import LedgerPlaces
from mediffusion_core.run_io.run_folder import run_path
from mediffusion_core.settings import Settings
from mediffusion_core.settings.site_file import SiteFile
from mediffusion_core.settings.site_policy import SitePolicy
from mediffusion_core.training.local_report import Progress

PATIENCE = 60.0
"""Seconds to wait for another process of the same site."""
SIMULATED = SitePolicy(require_privacy=False, shared_noise=True, keep_latents=3650)
"""The policy of a site without a site file."""


@dataclass(frozen=True)
class Site:
    """One site: its settings, and its images, client number `index` of the federated dataset."""

    settings: Settings
    dataset: FederatedDataset
    index: int
    folder: Path
    policy: SitePolicy = SIMULATED
    """The site's limits on runs."""
    own_ledger: LedgerPlaces | None = None
    """The ledger of a deployed site; None for a simulated one, which shares that of the run."""

    @property
    def name(self) -> str:
        """The site's name in the partition."""
        return self.dataset.clients[self.index].site

    @property
    def device(self) -> torch.device:
        """Where the site computes."""
        return resolve_device(self.settings.device)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets one process at a time work in the folder.

        Where a site's program was killed and started again, its last process may still be there.

        Raises:
            UserError: if another process works there for longer than `PATIENCE`.
        """
        lock = FileLock(self.folder / "site.lock", timeout=PATIENCE)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"another process works in {self.folder}") from None
        try:
            yield
        finally:
            lock.release()

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
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(entry))

        return report


def open_site(context: Context) -> Site:
    """The site that this context belongs to.

    Raises:
        UserError: if its settings do not compose, or its images cannot be opened.
        RefusedError: if a deployed site takes no part in the run.
    """
    config, node = context.run_config, context.node_config
    own = tuple((key, node[key]) for key in (FOLDER, SITE_FILE, DATA_ROOT, DEVICE) if key in node)
    settings, dataset, policy = _opened(str(config["config-name"]), str(config["overrides"]), own)
    torch.set_num_threads(own_threads(settings, node))
    index = 0 if SITE_FILE in node else int(node["partition-id"])
    if index >= len(dataset.clients):
        raise UserError(f"partition {index} asked for, but there are {len(dataset.clients)} sites")
    shared = run_path(settings.run, context.run_id)
    name = dataset.clients[index].site
    folder = (own_folder(settings, node) or shared) / "sites" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Site(settings, dataset, index, folder, policy, own_ledger(node, name))


def may_give_reasons(context: Context) -> bool:
    """Whether the reason of a failure may leave the site.

    It may not in a run with differential privacy, nor at a site that takes part in no other run,
    nor if settings or site file can't be read.
    """
    config, node = context.run_config, context.node_config
    try:
        if _composed(str(config["config-name"]), str(config["overrides"])).privacy.enabled:
            return False
        if SITE_FILE in node:
            return not SiteFile.read(Path(str(node[SITE_FILE]))).policy.require_privacy
    except Exception:  # whatever it is, it may not leave
        return False
    return True


@lru_cache(maxsize=1)
def _composed(config_name: str, overrides: str) -> Settings:
    return compose(config_name, split(overrides))


@lru_cache(maxsize=1)
def _opened(
    config_name: str, overrides: str, own: tuple[tuple[str, Any], ...]
) -> tuple[Settings, FederatedDataset, SitePolicy]:
    node = dict(own)
    settings = own_settings(_composed(config_name, overrides), node)
    if SITE_FILE in node:
        settings, dataset, policy = open_own(settings, Path(node[SITE_FILE]))
    else:
        dataset, policy = open_federated_dataset(settings), SIMULATED
    require_unit(dataset, settings)
    return settings, dataset, policy


def site_log(folder: Path) -> logging.Logger:
    """The site's own log, in its folder; error texts stay here.

    Raises:
        OSError: if it can't be opened.
    """
    logger = logging.getLogger(f"fed-mediffusion.site.{folder}")
    if not logger.handlers:
        handler = logging.FileHandler(folder / "site.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
