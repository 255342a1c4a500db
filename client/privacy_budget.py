"""The site's privacy ledger, which is charged before a reply leaves."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from client.site import Site, site_log
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.ledger.ledger import Cap, Ledger, LedgerTip
from mediffusion_core.privacy.ledger.site_ledger import LEFT_OUT, simulated_ledger
from mediffusion_core.privacy.ledger.unit_names import require_names

TIP = "tip"


def charge(
    site: Site, cost: Charge, stage: str, round_number: int, images: ImageSet
) -> frozenset[str]:
    """Charges the units that a reply may sample from; on the site's disk when this returns.

    A site without units writes an entry too, since the ledger's tip leaves with the reply and
    must not tell that there are none.

    Args:
        site: Whose ledger.
        cost: Of the reply.
        stage: Of training, or the kind of sums.
        round_number: Of the stage.
        images: That the reply may sample from.

    Returns:
        The charged patients or lesions: all but those that would be past what the site allows.
        Only the site's own log says how many these are.

    Raises:
        LedgerError: if the ledger is not to be trusted.
    """
    units = _names(site, images)
    charged = _ledger(site).charge(units, cost, stage, _run(site), round_number)
    if left_out := len(units) - len(charged):
        with suppress(OSError):  # a failure would tell that there are such units
            site_log(site.folder).info(
                "%s %d: %d of %d %s", stage, round_number, left_out, len(units), LEFT_OUT
            )
    return charged


def announce(site: Site, planned: Sequence[Charge]) -> None:
    """Announces a run of Gaussian mechanisms on all units; see `Ledger.announce`.

    Args:
        site: Whose ledger.
        planned: All charges of the run for a unit, the largest last, from the settings alone.

    Raises:
        LedgerError: if the ledger is not to be trusted.
    """
    _ledger(site).announce(planned, _run(site))


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
    privacy, policy = site.settings.privacy, site.policy
    # A filter's order follows from its cap: the site's own is the same in all runs.
    delta = privacy.target_delta if policy.max_epsilon is None else policy.target_delta
    cap = Cap(privacy.max_epsilon, delta) if privacy.max_epsilon else None
    run = site.folder.parent.parent
    ledger = (site.own_ledger or simulated_ledger(run, privacy)).open(cap)
    require_names(ledger, site.dataset.names)
    return ledger


def _run(site: Site) -> str:
    """The run's name in the ledger, which simulated sites share."""
    run = site.folder.parent.parent.name
    return f"{run}/{site.name}" if site.own_ledger is None else run


def _names(site: Site, images: ImageSet) -> list[str]:
    """Every patient or lesion of the images, once.

    Also where single images are the privacy unit: an image has spent at most what its patient has,
    and a later run that protects patients reads the same ledger.
    """
    return sorted(set(site.dataset.groups(images.rows)))
