"""The codes of a site's failures, and what its engineer can do.

With differential privacy they stay in the site's logs, and `FAILED` leaves in their place.
docs/reference/error-codes.md has them as a table.
"""

from dataclasses import dataclass

from mediffusion_core.messaging.protocol import FAILED


@dataclass(frozen=True)
class Failure:
    """The meaning of a code, and the remedy."""

    meaning: str
    remedy: str


FAILURES = {
    "audit": Failure(
        "the site's audit log can't be written, so no answer leaves",
        "free the disk, or move a log that was cut off and its tip away; `audit verify` names the "
        "cause",
    ),
    "data": Failure(
        "the run's settings don't compose, or don't fit the site's images",
        "read the line in the site's log; `site check` and `data check` look at images and labels",
    ),
    FAILED: Failure(
        "any failure in a run with differential privacy, or at a site that takes part in no other "
        "run",
        "look the id up in the site's log or audit log, which have the reason's own code",
    ),
    "gradients": Failure(
        "per-sample gradients differ from those of autograd, so noise would protect too little",
        "report it with the model's settings; no private round was trained",
    ),
    "internal": Failure(
        "an error that the program did not foresee",
        "read the traceback in the site's log by its id",
    ),
    "refused": Failure(
        "the run asks for more than the site's policy allows",
        "read the line in the site's log; change the run, or the site file",
    ),
    "settings": Failure(
        "server and site have different settings, or different versions of the program",
        "give server and site the same version, and start the run again",
    ),
    "tip-removed": Failure(
        "the ledger tip in the second place is gone",
        "restore it, or `site ledger verify --against TIP --restore-tip`",
    ),
    "tip-unreadable": Failure(
        "the ledger tip can't be read", "as for `tip-removed`, once the file is moved away"
    ),
    "ledger-behind": Failure(
        "the ledger has fewer entries than its tip, or than the server's: an older copy",
        "restore the newest copy",
    ),
    "ledger-busy": Failure(
        "another process held the ledger for a minute",
        "end the other process; one site, one ledger",
    ),
    "ledger-by-site": Failure(
        "a simulation's folder has ledgers of single sites, of an earlier version; their charges "
        "can't be joined",
        "finish with that version; name another folder for patients who are in none of them",
    ),
    "ledger-edited": Failure("the ledger's chain is broken", "restore a copy that is sound"),
    "ledger-format": Failure(
        "a later version of the program wrote the ledger", "update the site's program"
    ),
    "ledger-other": Failure(
        "the ledger differs from its tip, or from the server's: another ledger",
        "restore the site's own ledger",
    ),
    "ledger-removed": Failure("the ledger is gone, its tip is not", "restore the ledger"),
    "ledger-unreadable": Failure(
        "the ledger is no intact database", "restore a copy that is sound"
    ),
    "names-edited": Failure(
        "the note beside the ledger on its units' names is damaged", "restore it with the ledger"
    ),
    "names-other": Failure(
        "the ledger's units have other names than the data's, so no charge could be matched",
        "restore the secret, or the data's former unit; else begin a new ledger",
    ),
    "salt-damaged": Failure("the ledger's salt is damaged", "restore it with the ledger"),
    "salt-removed": Failure(
        "the ledger's salt is gone, so no patient is found again", "restore it with the ledger"
    ),
}
"""By code."""
