"""Asking the sites: one kind of message to all of them, and their replies in a fixed order."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from mediffusion_core import protocol
from mediffusion_core.payload import FORMAT, pack, unpack
from server.collecting import collect

StateDict = Mapping[str, Tensor]


class SiteError(Exception):
    """A site could not answer; the text names the site and a code, never what it saw."""


@dataclass(frozen=True)
class Reply:
    """What one site sent back: its arrays as tensors, decoded once."""

    site: str
    content: RecordDict
    components: Mapping[str, StateDict]

    @classmethod
    def of(cls, site: str, content: RecordDict) -> Self:
        """Decodes a site's message and lets go of the bytes that came.

        Raises:
            SiteError: if its arrays cannot be read, or hold a number that is none.
        """
        components: dict[str, StateDict] = {}
        for component, record in content.array_records.items():
            try:
                components[component] = unpack(record.pop(FORMAT).data)
            except (KeyError, ValueError) as error:
                raise SiteError(f"{site} sent arrays of {component} that cannot be read") from error
            for name, values in components[component].items():
                if not _all_finite(values):
                    raise SiteError(f"{site} sent a value in {component} {name} that is no number")
        reply = cls(site, content, components)
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


class Sites(Protocol):
    """The sites of one run, as its rounds see them."""

    @property
    def sites(self) -> list[str]:
        """Names of the sites that answered the census, in order."""

    def census(self) -> list[Reply]:
        """Asks each site for its name and its counts."""

    def ask(
        self,
        kind: str,
        round_number: int,
        components: Mapping[str, StateDict],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, StateDict]] | None = None,
    ) -> list[Reply]:
        """Sends one kind of message to the named sites, or to all, and returns their replies.

        `own` is by site's name what goes to that site alone. A site whose privacy budget is spent
        has no reply, and is no longer one of `sites`.
        """


class Federation:
    """The sites of one run, reached by Flower."""

    def __init__(
        self,
        grid: Grid,
        settings_hash: str,
        num_sites: int,
        round_timeout: float,
        min_replies: int | None = None,
    ) -> None:
        """Takes Flower's grid and what every message carries.

        Args:
            grid: Sends messages and collects replies.
            settings_hash: Refused by a site that runs other settings.
            num_sites: How many sites take part; the run waits for all of them.
            round_timeout: Seconds that a site may take to reply.
            min_replies: So many end a round without the sites that are silent; all by default.
        """
        self._grid = grid
        self._hash = settings_hash
        self._num_sites = num_sites
        self._timeout = round_timeout
        self._spared = 0 if min_replies is None else max(0, num_sites - min_replies)
        self._names: dict[int, str] = {}

    def census(self) -> list[Reply]:
        """Waits for the sites, and asks each for its name and its counts."""
        nodes = self._wait()
        replies = self._collect(protocol.CENSUS, nodes, 0, {}, {})
        if not replies:
            raise SiteError("every site's privacy budget is spent")
        for message in replies:
            name = str(message.content.config_records[protocol.IDENTITY]["site"])
            self._names[message.metadata.src_node_id] = name
        if len(set(self._names.values())) != len(replies):
            raise SiteError(f"two sites have one name: {sorted(self._names.values())}")
        return self._ordered(replies)

    @property
    def sites(self) -> list[str]:
        """Names of the sites that answered the census, in order."""
        return sorted(self._names.values())

    def ask(
        self,
        kind: str,
        round_number: int,
        components: Mapping[str, StateDict],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, StateDict]] | None = None,
    ) -> list[Reply]:
        """Sends one kind of message and returns the replies, ordered by site.

        Args:
            kind: Of message.
            round_number: Goes with it.
            components: Weights that go with it.
            sites: Names of those asked; all by default.
            own: By site's name, what goes to that site alone.

        A site whose privacy budget is spent has no reply, and is asked no more.

        Raises:
            SiteError: if a site fails or sends a number that is none, or too few answer in time.
        """
        nodes = [node for node, name in self._names.items() if sites is None or name in sites]
        return self._ordered(self._collect(kind, nodes, round_number, components, own or {}))

    def _wait(self) -> list[int]:
        deadline = time.monotonic() + self._timeout
        while len(nodes := sorted(self._grid.get_node_ids())) < self._num_sites:
            if time.monotonic() > deadline:
                raise SiteError(f"{len(nodes)} of {self._num_sites} sites came in time")
            time.sleep(0.1)
        return nodes

    def _collect(
        self,
        kind: str,
        nodes: Sequence[int],
        round_number: int,
        components: Mapping[str, StateDict],
        own: Mapping[str, Mapping[str, StateDict]],
    ) -> list[Message]:
        arrays = array_records(components)

        def message(node: int) -> Message:
            alone = array_records(own.get(self._name(node), {}))
            content = request(self._hash, round_number, {**arrays, **alone})
            return Message(content, message_type=kind, dst_node_id=node, group_id=str(round_number))

        needed = self._needed(kind, len(nodes))
        collected = collect(self._grid, nodes, message, needed, self._timeout)
        for reply in collected.replies:
            self._check(reply, kind)
        if len(collected.replies) < needed:
            names = ", ".join(sorted(self._name(node) for node in collected.missing))
            raise SiteError(f"no reply to {kind} within {self._timeout:.0f} s from {names}")
        spent = [reply for reply in collected.replies if is_spent(reply.content)]
        for reply in spent:
            self._names.pop(reply.metadata.src_node_id, None)
        return [reply for reply in collected.replies if reply not in spent]

    def _needed(self, kind: str, asked: int) -> int:
        """How many of those asked must answer: all but as many as may be silent.

        Who a site is, the census alone can tell, so all must answer that one. Of training there
        must be one reply; a site that was away when the others encoded may still be away.
        """
        if kind == protocol.CENSUS:
            return asked
        return max(0 if kind == protocol.ENCODE else min(1, asked), asked - self._spared)

    def _check(self, reply: Message, kind: str) -> None:
        name = self._name(reply.metadata.src_node_id)
        if reply.has_error():
            raise SiteError(f"{name} was lost during {kind} (Flower's code {reply.error.code})")
        if not is_spent(reply.content):
            check_success(name, kind, reply.content)

    def _ordered(self, messages: Sequence[Message]) -> list[Reply]:
        replies = [Reply.of(self._names[m.metadata.src_node_id], m.content) for m in messages]
        return sorted(replies, key=lambda reply: reply.site)

    def _name(self, node: int) -> str:
        return self._names.get(node, f"site at node {node}")


def request(
    settings_hash: str, round_number: int, records: Mapping[str, ArrayRecord]
) -> RecordDict:
    """What the server sends to a site, whatever carries it."""
    instructions = ConfigRecord({"settings_hash": settings_hash, "round": round_number})
    return RecordDict({protocol.INSTRUCTIONS: instructions, **records})


def array_records(components: Mapping[str, StateDict]) -> dict[str, ArrayRecord]:
    """Components as they travel."""
    return {name: ArrayRecord({FORMAT: Array(*pack(state))}) for name, state in components.items()}


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
