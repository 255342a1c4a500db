"""The site's audit log: a line for each answer, on the disk before the answer leaves."""

from flwr.app import Message, RecordDict

from client import privacy_budget
from client.site import Site
from mediffusion_core.common.audit_log import AuditLog
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.disclosure import ANSWERS

ANSWERED = "answered"
"""Outcome of a message that the site answered; else the outcome is the code of the failure."""


def write_answer(message: Message, run_id: int, site: Site | None, content: RecordDict) -> None:
    """Writes which message the site answers, in which run, on which data, and the outcome.

    Args:
        message: From the server.
        run_id: Flower's id of the run.
        site: None if it could not be opened.
        content: Of the answer.

    Raises:
        AuditError: if the line can't be written; the answer must not leave then.
    """
    log = AuditLog.of_environment()
    if log is None:
        return
    kind = message.metadata.message_type
    failure = dict(content.config_records.get(protocol.FAILURE, {}))
    instructions = dict(message.content.config_records.get(protocol.INSTRUCTIONS, {}))
    asked = protocol.answered(kind, instructions)
    log.append(
        "answer",
        at="site",
        site=None if site is None else site.name,
        run=str(run_id),
        **asked,
        data=None if site is None else site.dataset.store.place.name,
        outcome=str(failure.get("code", ANSWERED)),
        error=str(failure["id"]) if failure else None,
        epsilon=None if failure or site is None else _epsilon(site, kind),
    )


def _epsilon(site: Site, kind: str) -> float | None:
    """The largest ε of a patient after an answer; None where the answer was not charged."""
    if not site.settings.privacy.enabled or ANSWERS[kind].charge == "nothing":
        return None
    return privacy_budget.spent(site)
