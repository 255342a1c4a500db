"""The site's ledger: what its patients have spent, charged before anything leaves."""

from client.site import Site
from mediffusion_core.privacy.accounting import Charge
from mediffusion_core.privacy.ledger import Cap, Ledger

FOLDER = "ledger"


def charge(site: Site, cost: Charge, stage: str, round_number: int) -> None:
    """Charges all units among whom an answer draws; on the site's disk when this returns.

    Raises:
        BudgetSpent: if a unit would be past what the site allows; nothing is charged then.
        LedgerError: if the ledger is not to be trusted.
    """
    names = _names(site)
    if not names:  # nobody to protect
        return
    privacy = site.settings.privacy
    cap = Cap(privacy.max_epsilon, privacy.target_delta) if privacy.max_epsilon else None
    # Only a ledger that outlives the run knows of other runs on the same patients.
    folder = privacy.ledger / site.name if privacy.ledger else site.folder / FOLDER
    run = site.folder.parent.parent.name
    Ledger.open(folder, cap=cap).charge(names, cost, stage, run, round_number)


def _names(site: Site) -> list[str]:
    """Every training patient or lesion, once.

    So too where single images are protected: an image has spent at most what its patient has, and
    a later run that protects patients sees it.
    """
    return sorted(set(site.hospitals.groups(site.hospitals.train(site.index).rows)))
