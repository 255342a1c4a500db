"""The site's audit log: a line for each answer, on the disk before the answer leaves."""

from flwr.app import Message

from client import privacy_budget
from client.failures import Failure, asked
from client.site import Site
from mediffusion_core.common.audit_log import AuditLog
from mediffusion_core.messaging.disclosure import ANSWERS

ANSWERED = "answered"
"""Outcome of a message that the site answered; else the outcome is the code of the failure."""


def write_answer(message: Message, run_id: int, site: Site | None, failure: Failure | None) -> None:
    """Writes which message the site answers, in which run, on which data, and the outcome.

    Args:
        message: From the server.
        run_id: Flower's id of the run.
        site: None if it could not be opened.
        failure: In the place of an answer; None if the site answers. Its reason is logged, which
            may be another code than the one that leaves.

    Raises:
        AuditError: if the line can't be written; the answer must not leave then.
    """
    log = AuditLog.of_environment()
    if log is None:
        return
    log.append(
        "answer",
        at="site",
        site=None if site is None else site.name,
        run=str(run_id),
        **asked(message),
        data=None if site is None else site.dataset.store.place.name,
        outcome=failure.code if failure else ANSWERED,
        error=failure.identity if failure else None,
        epsilon=None if failure or site is None else _epsilon(site, message.metadata.message_type),
    )


def _epsilon(site: Site, kind: str) -> float | None:
    """The largest ε of a patient after an answer; None where the answer was not charged."""
    if not site.settings.privacy.enabled or ANSWERS[kind].charge == "nothing":
        return None
    return privacy_budget.spent(site)
