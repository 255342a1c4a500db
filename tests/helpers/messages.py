"""Asking a site as Flower does: one message in, one message out, in this process."""

from collections.abc import Mapping, Sequence

from flwr.app import Message, RecordDict
from torch import Tensor

from configs.compose import flatten
from mediffusion_core.messaging import disclosure, protocol
from mediffusion_core.messaging.serialization import FORMAT, unpack
from simulations.engine.in_process import answer, order


def sent(
    kind: str,
    overrides: Sequence[str],
    settings_hash: str,
    arrays: Mapping[str, Mapping[str, Tensor]] | None = None,
    site: int = 0,
    round_number: int = 1,
) -> Message:
    """A site's reply to one message, which holds nothing that the protocol does not declare."""
    message = order(kind, settings_hash, arrays or {}, site, round_number)
    run_config = {"config-name": "config", "overrides": flatten(overrides)}
    reply = answer(message, site, 3, run_config)
    assert undeclared(kind, reply.content) == set()
    return reply


def undeclared(kind: str, content: RecordDict) -> set[str]:
    """Records of an answer, and names in its metrics and counts, that `ANSWERS` does not list."""
    declared = disclosure.ANSWERS[kind]
    fields = set(content.metric_records.get(protocol.METRICS, {}))
    if protocol.COUNTS in content:
        fields |= set(unpack(content.array_records[protocol.COUNTS][FORMAT].data))
    return set(content) - declared.records - set(disclosure.WITH_ANY) | fields - declared.fields
