"""Places of a site's ledger: from the site file, or in the run folder of a simulated site.

The ledger's salt is also the secret of a deployed site, which deals its units and makes pseudonyms:
without the salt the ledger is refused, so the secret cannot change unnoticed.
"""

from pathlib import Path

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import data_folder
from mediffusion_core.data.store.prepared import default_store_folder
from mediffusion_core.privacy.ledger.ledger import FILE, Cap, Ledger
from mediffusion_core.privacy.ledger.salt import ledger_salt
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.settings.site_file import SiteFile


def open_site_ledger(site: SiteFile, *, begin: bool = True) -> Ledger:
    """Opens the site's ledger, with the site's cap.

    Args:
        site: The site file.
        begin: Whether to create a ledger if none exists.

    Raises:
        LedgerError: if the ledger fails verification.
    """
    folder, tip = ledger_places(site)
    policy = site.policy
    cap = None if policy.max_epsilon is None else Cap(policy.max_epsilon, policy.target_delta)
    return Ledger.open(folder, tip=tip, cap=cap, begin=begin)


def site_secret(site: SiteFile) -> bytes:
    """The secret of a deployed site; drawn at the first call.

    Raises:
        LedgerError: if there is a ledger, and its salt is gone or damaged.
        UserError: if the ledger's folder can't be written.
    """
    folder = ledger_places(site)[0]
    try:
        return ledger_salt(folder, draw=not (folder / FILE).exists())
    except OSError as error:
        raise UserError(f"ledger.folder {folder}: {error.strerror}") from None


def simulated_ledger(folder: Path, privacy: PrivacySettings) -> tuple[Path, Path | None]:
    """Ledger folder and tip file of a simulated site; None for a tip beside the ledger.

    With `privacy.ledger` the ledger outlives the run and counts other runs on the same patients.

    Args:
        folder: The site's folder in the run folder.
        privacy: Settings of the run.
    """
    kept = privacy.ledger / folder.name if privacy.ledger else folder / "ledger"
    return kept, privacy.ledger_tips / folder.name if privacy.ledger_tips else None


def ledger_places(site: SiteFile) -> tuple[Path, Path]:
    """Ledger folder and tip file of a site file, with their defaults."""
    store = site.data.store or default_store_folder()
    return (
        site.ledger.folder or data_folder() / "ledgers" / site.name,
        site.ledger.tip or store / "ledger-heads" / site.name,
    )
