"""Paths and device of a deployed site, from the command line of its SuperNode.

A simulated site lies on the server's disk, and the run's settings name its paths. A deployed site
never reads or writes a path that the server names. Its `--node-config` has these keys:

`folder`: where the site may write; with it a site is deployed.
`site-file`: names all images of the site and its device.
`data-root`: without a site file, images of all sites; the site takes part `partition-id`.
`device`, `threads`: where the site computes; by default as the run asks.

A private run on images needs a site file: without one the run's settings say what the images are,
and a server could try settings until they fit.
"""

from collections.abc import Mapping
from pathlib import Path

from mediffusion_core.common.errors import RefusedError, UserError
from mediffusion_core.privacy.ledger.site_ledger import LedgerPlaces, ledger_places
from mediffusion_core.settings import RunSettings, Settings
from mediffusion_core.settings.site_file import SiteFile

NodeConfig = Mapping[str, str | int | float | bool]

FOLDER = "folder"
SITE_FILE = "site-file"
DATA_ROOT = "data-root"
DEVICE = "device"
THREADS = "threads"
LEDGER = "ledger"
"""Below the site's folder, where no site file names another place."""


def own_settings(settings: Settings, node: NodeConfig) -> Settings:
    """The run's settings with the site's own paths and device.

    Args:
        settings: As the server sent them.
        node: What the site's SuperNode was started with.

    Raises:
        RefusedError: if a private run needs images and the site has no site file.
        UserError: if the run needs images and the site names none, or the run's table lies outside
            the site's data root, or if its sites would need a common secret.
    """
    if FOLDER not in node:
        return settings
    run = RunSettings(keep_last=settings.run.keep_last)
    privacy = settings.privacy.model_copy(update={"ledger": None, "ledger_tips": None})
    settings = settings.model_copy(update={"run": run, "privacy": privacy})
    if SITE_FILE in node:  # which says all that follows
        return settings
    if privacy.enabled and settings.data.source != "phantom":
        raise RefusedError(f"a private run on images needs {SITE_FILE} in this site's node config")
    root = Path(str(node[DATA_ROOT])) if DATA_ROOT in node else None
    data = settings.data
    if root is None and data.source != "phantom":
        raise UserError(f"data={data.source} needs {DATA_ROOT} in this site's node config")
    if data.table is not None and not _lies_in(root, data.table):
        raise UserError(f"data.table {data.table} does not lie in this site's data root")
    _refuse_common_secret(settings)
    return settings.model_copy(
        update={
            "device": str(node.get(DEVICE, settings.device)),
            "data": data.model_copy(update={"root": root, "store": None}),
        }
    )


def _refuse_common_secret(settings: Settings) -> None:
    """Refuses runs that a secret divides among sites, which each have a secret of their own."""
    if settings.data.source == "dicom":
        raise UserError(
            f"data=dicom needs {SITE_FILE} in this site's node config: the site's secret names its "
            "patients, so sites and server would divide a common folder differently"
        )
    if settings.privacy.enabled and settings.data.labels_at == "server":
        raise UserError(
            "data.labels_at=server: each site's secret draws its labelled patients, so the "
            "server's part would overlap with theirs; allowed with privacy.enabled: sites"
        )


def own_folder(settings: Settings, node: NodeConfig) -> Path | None:
    """Where a deployed site keeps what belongs to a run; None in simulation.

    Runs with the same settings share it, so that a continued one finds what the site kept.
    """
    return Path(str(node[FOLDER])) / settings.fingerprint() if FOLDER in node else None


def own_ledger(node: NodeConfig, name: str) -> LedgerPlaces | None:
    """The places of a deployed site's ledger, given the site's name; None in simulation."""
    if SITE_FILE in node:
        return ledger_places(SiteFile.read(Path(str(node[SITE_FILE]))))
    return LedgerPlaces(Path(str(node[FOLDER])) / LEDGER / name) if FOLDER in node else None


def own_threads(settings: Settings, node: NodeConfig) -> int:
    """How many threads the site computes with.

    A simulated site has its share of the cores: with more threads, sites block each other.
    """
    return max(1, int(node.get(THREADS, settings.federation.cpus_per_site)))


def _lies_in(root: Path | None, table: Path) -> bool:
    return root is not None and (root / table).resolve().is_relative_to(root.resolve())
