"""The last check of a reply at the site: only declared content leaves."""

from flwr.app import RecordDict

from mediffusion_core.messaging.disclosure import ANSWERS
from mediffusion_core.messaging.protocol import COUNTS, METRICS
from mediffusion_core.messaging.serialization import FORMAT, unpack


class UndeclaredContentError(Exception):
    """A reply has content that `messaging.disclosure` does not declare, by a fault of this code."""


def refuse_undeclared(kind: str, content: RecordDict, private: bool) -> None:
    """Checks the records of a reply, and the names in its metrics and counts.

    Args:
        kind: Of the message that is answered.
        content: What the message's handler returned.
        private: Whether the run has differential privacy.

    Raises:
        UndeclaredContentError: naming the records or fields that `ANSWERS` does not list.
    """
    answer = ANSWERS[kind]
    fields = set(content.metric_records.get(METRICS, {}))
    if COUNTS in content.array_records:
        fields |= set(unpack(content.array_records[COUNTS][FORMAT].data))
    declared = answer.private_fields if private else answer.fields
    if undeclared := set(content) - answer.records | fields - declared:
        raise UndeclaredContentError(f"{', '.join(sorted(undeclared))} in a reply to {kind}")
