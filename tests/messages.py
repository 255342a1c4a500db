"""Asking a site as Flower does: one message in, one message out, in this process."""

import time
from collections.abc import Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from torch import Tensor

from client.app import app
from configs.compose import flatten
from mediffusion_core.protocol import INSTRUCTIONS

RUN = 1
SERVER = 1


def sent(
    kind: str,
    overrides: Sequence[str],
    settings_hash: str,
    arrays: Mapping[str, Mapping[str, Tensor]] | None = None,
    site: int = 0,
    round_number: int = 1,
) -> Message:
    """A site's reply to one message."""
    order = ConfigRecord({"settings_hash": settings_hash, "round": round_number})
    records = {name: ArrayRecord(dict(state)) for name, state in (arrays or {}).items()}
    node = site + 2
    # Spelled out, since Flower otherwise takes it from a task that runs in this process.
    metadata = Metadata(
        run_id=RUN,
        message_id="message",
        src_node_id=SERVER,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=str(round_number),
        created_at=time.time(),
        ttl=3600.0,
        message_type=kind,
    )
    message = Message(RecordDict({INSTRUCTIONS: order, **records}), metadata=metadata)
    context = Context(
        run_id=RUN,
        node_id=node,
        node_config={"partition-id": site, "num-partitions": 3},
        state=RecordDict(),
        run_config={"config-name": "config", "overrides": flatten(overrides)},
    )
    return app(message, context)
