"""Messages as the server makes and reads them, whatever carries them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from mediffusion_core import protocol
from mediffusion_core.compression import changed, method_of, outward
from mediffusion_core.payload import FORMAT, pack, unpack
from mediffusion_core.settings import Compression

StateDict = Mapping[str, Tensor]


class SiteError(Exception):
    """A site could not answer; the text names the site and a code, never what it saw."""


@dataclass(frozen=True)
class Reply:
    """What one site sent back: its arrays as tensors, decoded once.

    `traffic` says how many bytes of arrays the site received with the message, and sent.
    """

    site: str
    content: RecordDict
    components: Mapping[str, StateDict]
    traffic: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        site: str,
        content: RecordDict,
        asked: Mapping[str, StateDict] | None = None,
        method: Compression = "none",
        received: int = 0,
    ) -> Self:
        """Decodes a site's message and lets go of the bytes that came.

        Args:
            site: Its name.
            content: Of its message.
            asked: The components that it was sent, as the server has them.
            method: How the components travelled.
            received: Bytes that it was sent.

        Raises:
            SiteError: if its arrays cannot be read, or hold a number that is none.
        """
        components: dict[str, StateDict] = {}
        traffic = {"bytes_received": received, "bytes_sent": size_of(content.array_records)}
        for component, record in content.array_records.items():
            try:
                state: StateDict = unpack(record.pop(FORMAT).data)
                before = (asked or {}).get(component, {})
                state = changed(before, state, method_of(component, method))
            except (KeyError, ValueError) as error:
                raise SiteError(f"{site} sent arrays of {component} that cannot be read") from error
            components[component] = state
            for name, values in components[component].items():
                if not _all_finite(values):
                    raise SiteError(f"{site} sent a value in {component} {name} that is no number")
        reply = cls(site, content, components, traffic)
        for metric, value in reply._metrics.items():
            numbers = value if isinstance(value, list) else [value]
            if not all(math.isfinite(float(str(one))) for one in numbers):
                raise SiteError(f"{site} sent a metric {metric} that is no number")
        return reply

    @property
    def metrics(self) -> dict[str, float]:
        """The site's metrics of a round."""
        return {name: float(str(value)) for name, value in self._metrics.items()}

    @property
    def census(self) -> dict[str, int | list[int]]:
        """The site's counts."""
        return {name: _integers(value) for name, value in self._metrics.items()}

    @property
    def _metrics(self) -> Mapping[str, object]:
        return dict(self.content.metric_records.get(protocol.METRICS, {}))


def request(
    settings_hash: str, round_number: int, records: Mapping[str, ArrayRecord]
) -> RecordDict:
    """What the server sends to a site, whatever carries it."""
    instructions = ConfigRecord({"settings_hash": settings_hash, "round": round_number})
    return RecordDict({protocol.INSTRUCTIONS: instructions, **records})


def array_records(
    components: Mapping[str, StateDict], method: Compression = "none"
) -> dict[str, ArrayRecord]:
    """Components as they travel to the sites."""
    travelling = {
        name: outward(state, method_of(name, method)) for name, state in components.items()
    }
    return {name: ArrayRecord({FORMAT: Array(*pack(state))}) for name, state in travelling.items()}


def size_of(records: Mapping[str, ArrayRecord]) -> int:
    """Bytes of all arrays, as they travel."""
    return sum(len(array.data) for record in records.values() for array in record.values())


def is_spent(content: RecordDict) -> bool:
    """Whether a site answers no more, since its patients have spent what it allows."""
    failure = content.config_records.get(protocol.FAILURE)
    return failure is not None and failure["code"] == protocol.BUDGET


def check_success(name: str, kind: str, content: RecordDict) -> None:
    """Refuses what a site sent that could not do its work.

    Raises:
        SiteError: naming site, kind of message, code and id.
    """
    failure = content.config_records.get(protocol.FAILURE)
    if failure is not None:
        raise SiteError(
            f"{name} failed during {kind}: code {failure['code']}, id {failure['id']}; "
            "the text is in that site's site.log"
        )


def _all_finite(values: Tensor) -> bool:
    """Whether no value is nan or infinite, in one pass and without a mask of the same size."""
    if not values.numel():
        return True
    return all(math.isfinite(float(bound)) for bound in values.aminmax())


def _integers(value: object) -> int | list[int]:
    return [int(one) for one in value] if isinstance(value, list) else int(str(value))
