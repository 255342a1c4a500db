"""Outcomes of a message to a site: codes for the record of a run and for the audit log.

docs/reference/error-codes.md has them as a table.
"""

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of a message to a site; every other one than `COUNTED` sets its reply aside."""

    COUNTED = "counted"
    FAILED = "failed"
    SILENT = "silent"
    LOST = "lost"
    UNREADABLE = "unreadable"
    CONTRACT = "contract"
    NAME = "name"
    LATE = "late"
    BOUND = "bound"
    UNCHECKED = "unchecked"


MEANINGS = {
    Outcome.COUNTED: "the reply counts",
    Outcome.FAILED: "the site answered with a failure code and an id",
    Outcome.SILENT: "no reply within `federation.round_timeout`",
    Outcome.LOST: "Flower could not deliver the message, or the site refused the run's code; the "
    "reason has Flower's code, and the text of a refusal",
    Outcome.UNREADABLE: "Flower could not read the reply",
    Outcome.CONTRACT: "the reply breaks the reply contract: other records, names, shapes, types, "
    "sizes or values than the message asks for",
    Outcome.NAME: "the site took a name that belongs to another key or node",
    Outcome.LATE: "the site came after all sites for which client-level noise is planned",
    Outcome.BOUND: "the site's change of a component is longer than `federation.norm_bound` "
    "allows, or agrees less than `federation.agreement_bound` asks; the audit log has a line with "
    "`counted` for the same reply before it",
    Outcome.UNCHECKED: "the check of the reply failed; the server's log has the traceback",
}
"""The meaning of each outcome."""
