"""The site's privacy ledger, which is charged before a reply leaves."""

from collections.abc import Mapping

import torch
from torch import Tensor

from client.site import Site
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.ledger.ledger import Cap, Ledger, LedgerTip
from mediffusion_core.privacy.ledger.site_ledger import simulated_ledger
from mediffusion_core.privacy.ledger.unit_names import require_names

TIP = "tip"


def charge(site: Site, cost: Charge, stage: str, round_number: int) -> None:
    """Charges all units that a reply may sample from; on the site's disk when this returns.

    A site without units writes an entry too, since the ledger's tip leaves with the reply and
    must not tell that there are none.

    Raises:
        BudgetSpent: if a unit would be past what the site allows; nothing is charged then.
        LedgerError: if the ledger is not to be trusted.
    """
    run = site.folder.parent.parent.name
    _ledger(site).charge(_names(site), cost, stage, run, round_number)


def spent(site: Site) -> float:
    """The largest ε of a patient over all entries, at the δ of the run.

    Raises:
        LedgerError: if the ledger is not to be trusted.
    """
    return _ledger(site).worst(site.settings.privacy.target_delta)


def refuse_older_ledger(site: Site, tip: Mapping[str, Tensor]) -> None:
    """Refuses a ledger that is older than the tip that the server holds.

    Raises:
        LedgerError: if it does not contain that tip, or is not to be trusted.
    """
    _ledger(site).must_extend(LedgerTip.parse(bytes(tip[TIP].tolist()).decode()))


def ledger_tip(site: Site) -> dict[str, Tensor]:
    """The tip of the site's ledger, for the server to keep."""
    text = str(_ledger(site).verify()).encode()
    return {TIP: torch.tensor(list(text), dtype=torch.uint8)}


def _ledger(site: Site) -> Ledger:
    privacy = site.settings.privacy
    cap = Cap(privacy.max_epsilon, privacy.target_delta) if privacy.max_epsilon else None
    folder, tip = simulated_ledger(site.folder, privacy)
    ledger = Ledger.open(folder, tip=tip, cap=cap)
    require_names(ledger, site.dataset.names)
    return ledger


def _names(site: Site) -> list[str]:
    """Every training patient or lesion, once.

    Also where single images are the privacy unit: an image has spent at most what its patient has,
    and a later run that protects patients reads the same ledger.
    """
    return sorted(set(site.dataset.groups(site.dataset.train(site.index).rows)))
