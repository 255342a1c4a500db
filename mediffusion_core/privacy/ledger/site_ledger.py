"""Places of a privacy ledger: from the site file, or in the folder of a simulation.

The ledger's salt is also the secret of a deployed site, which deals its units and makes pseudonyms:
without the salt the ledger is refused, so the secret cannot change unnoticed.
"""

from dataclasses import dataclass
from pathlib import Path

from mediffusion_core.common.errors import LedgerError, UserError
from mediffusion_core.common.files import data_folder
from mediffusion_core.data.store.prepared import default_store_folder
from mediffusion_core.privacy.ledger.ledger import FILE, Cap, Ledger
from mediffusion_core.privacy.ledger.salt import ledger_salt
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.settings.site_file import SiteFile

ALL_SITES = "all-sites"
"""Name of a simulation's ledger in `privacy.ledger`, and of its tip in `privacy.ledger_tips`."""

LEFT_OUT = "units have spent their budget and are left out"
"""In a site's own log, behind stage, round and numbers."""


@dataclass(frozen=True)
class LedgerPlaces:
    """Folder of a ledger, and file of its tip; None for a tip beside the folder."""

    folder: Path
    tip: Path | None = None

    def open(self, cap: Cap | None = None, *, begin: bool = True) -> Ledger:
        """Opens the ledger; see `Ledger.open`."""
        return Ledger.open(self.folder, tip=self.tip, cap=cap, begin=begin)


def open_site_ledger(site: SiteFile, *, begin: bool = True) -> Ledger:
    """Opens the site's ledger, with the site's cap.

    Args:
        site: The site file.
        begin: Whether to create a ledger if none exists.

    Raises:
        LedgerError: if the ledger fails verification.
    """
    policy = site.policy
    cap = None if policy.max_epsilon is None else Cap(policy.max_epsilon, policy.target_delta)
    return ledger_places(site).open(cap, begin=begin)


def ledger_places(site: SiteFile) -> LedgerPlaces:
    """Ledger folder and tip file of a site file, with their defaults."""
    store = site.data.store or default_store_folder()
    return LedgerPlaces(
        site.ledger.folder or data_folder() / "ledgers" / site.name,
        site.ledger.tip or store / "ledger-heads" / site.name,
    )


def site_secret(site: SiteFile) -> bytes:
    """The secret of a deployed site; drawn at the first call.

    Raises:
        LedgerError: if there is a ledger, and its salt is gone or damaged.
        UserError: if the ledger's folder can't be written.
    """
    folder = ledger_places(site).folder
    try:
        return ledger_salt(folder, draw=not (folder / FILE).exists())
    except OSError as error:
        raise UserError(f"ledger.folder {folder}: {error.strerror}") from None


def simulated_ledger(run: Path, privacy: PrivacySettings) -> LedgerPlaces:
    """The one ledger of all simulated sites: another seed may deal a patient to another site.

    With `privacy.ledger` the ledger outlives the run and counts other runs on the same patients.

    Args:
        run: Folder of the run.
        privacy: Settings of the run.

    Raises:
        LedgerError: if there are ledgers of single sites, which earlier versions kept.
    """
    shared, tips = privacy.ledger, privacy.ledger_tips
    former = [*run.glob("sites/*/ledger"), *run.glob("sites/*/ledger.head")]
    if shared:
        former += [*shared.glob("*/ledger.sqlite"), *shared.glob("*.head")]
    if tips:
        former += [one for one in tips.glob("*") if one.is_file()]
    for place in former:
        if ALL_SITES not in (place.parent.name, place.name, place.stem):
            raise LedgerError(
                "ledger-by-site",
                f"{place} is of a ledger of one site, which an earlier version kept: its charges "
                "cannot be joined with those of other sites; name another folder only for patients "
                "who are not in it",
            )
    folder = shared / ALL_SITES if shared else run / "ledger"
    return LedgerPlaces(folder, tips / ALL_SITES if tips else None)
