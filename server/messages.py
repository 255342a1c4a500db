"""Messages as the server makes and reads them, whatever carries them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.compression import component_compression, compress_weights
from mediffusion_core.messaging.omission import without, zero_moments
from mediffusion_core.messaging.protocol import MOMENTS
from mediffusion_core.messaging.serialization import FORMAT, pack
from mediffusion_core.settings import Compression
from server.outcomes import Outcome

StateDict = Mapping[str, Tensor]
Census = Mapping[str, int | list[int]]

FAILURE_CODE = re.compile(r"[a-z][a-z-]{0,31}")
FAILURE_ID = re.compile(r"[0-9a-f]{8}")


class SiteError(Exception):
    """Too few sites answered; the text names sites, codes and reasons, never what a site wrote."""


class RefusedReplyError(Exception):
    """A reply that does not count. The text says why, and repeats nothing that the site wrote."""

    def __init__(self, text: str, code: Outcome = Outcome.CONTRACT) -> None:
        """Takes the text, and the code of the reason."""
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Reply:
    """The reply of one site, checked by the reply contract and decoded once.

    `traffic` counts the bytes of arrays that the site received with the message, and sent.
    """

    site: str
    components: Mapping[str, StateDict]
    metrics: Mapping[str, float] = field(default_factory=dict)
    census: Census = field(default_factory=dict)
    traffic: Mapping[str, int] = field(default_factory=dict)


def request(
    settings_hash: str, round_number: int, records: Mapping[str, ArrayRecord]
) -> RecordDict:
    """The content of a message to a site, for Flower and in-process runs alike."""
    instructions = ConfigRecord({"settings_hash": settings_hash, "round": round_number})
    return RecordDict({protocol.INSTRUCTIONS: instructions, **records})


def array_records(
    components: Mapping[str, StateDict], method: Compression = "none"
) -> dict[str, ArrayRecord]:
    """Components as they travel to the sites."""
    records = {}
    for name, state in components.items():
        zeros = zero_moments(state) if name in MOMENTS.values() else ()
        travelling = without(compress_weights(state, component_compression(name, method)), zeros)
        records[name] = ArrayRecord({FORMAT: Array(*pack(travelling))})
    return records


def size_of(records: Mapping[str, ArrayRecord]) -> int:
    """Bytes of all arrays, as they travel."""
    return sum(len(array.data) for record in records.values() for array in record.values())


def refuse_failure(content: RecordDict) -> None:
    """Refuses the reply of a site that could not do its work.

    Raises:
        RefusedReplyError: with the site's code and id, if they are of the form that sites use.
    """
    failure = content.config_records.get(protocol.FAILURE)
    if failure is None:
        return
    code, identity = str(failure.get("code")), str(failure.get("id"))
    if not (FAILURE_CODE.fullmatch(code) and FAILURE_ID.fullmatch(identity)):
        raise RefusedReplyError("failed, with a code that no site uses")
    raise RefusedReplyError(
        f"failed: code {code}, id {identity}; the text is in that site's site.log", Outcome.FAILED
    )
