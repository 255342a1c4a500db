"""Where a site's ledger is: of the hospital that a site file describes, or of a simulated one."""

import os
from pathlib import Path

from mediffusion_core.data.store.prepared import default_store_folder
from mediffusion_core.privacy.ledger.ledger import Cap, Ledger
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.settings.site_file import SiteFile


def open_site_ledger(site: SiteFile, *, begin: bool = True) -> Ledger:
    """Opens the site's ledger, with the site's cap.

    Args:
        site: What the hospital says.
        begin: Whether to begin a ledger where there never was one.

    Raises:
        LedgerError: if it is not to be trusted.
    """
    folder, head = ledger_places(site)
    policy = site.policy
    cap = None if policy.max_epsilon is None else Cap(policy.max_epsilon, policy.target_delta)
    return Ledger.open(folder, head=head, cap=cap, begin=begin)


def simulated_ledger(folder: Path, privacy: PrivacySettings) -> tuple[Path, Path | None]:
    """The ledger's folder and the file of its head of a site with such a folder in a run's.

    Only a ledger that outlives the run knows of other runs on the same patients.
    """
    kept = privacy.ledger / folder.name if privacy.ledger else folder / "ledger"
    return kept, privacy.ledger_heads / folder.name if privacy.ledger_heads else None


def ledger_places(site: SiteFile) -> tuple[Path, Path]:
    """The ledger's folder and the file of its head, as given or by default."""
    store = site.data.store or default_store_folder()
    return (
        site.ledger.folder or _data_folder() / "ledgers" / site.name,
        site.ledger.head or store / "ledger-heads" / site.name,
    )


def _data_folder() -> Path:
    given = os.environ.get("XDG_DATA_HOME")
    return (Path(given) if given else Path.home() / ".local" / "share") / "fed-mediffusion"
