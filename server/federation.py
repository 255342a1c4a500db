"""Asking the sites: one kind of message to all of them, and their replies in a fixed order."""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from mediffusion_core import protocol
from mediffusion_core.compression import method_for
from mediffusion_core.settings import Compression
from server.collecting import collect
from server.messages import (
    Reply,
    SiteError,
    array_records,
    check_success,
    is_spent,
    request,
    size_of,
)

StateDict = Mapping[str, Tensor]


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
        compression: Compression = "none",
    ) -> None:
        """Takes Flower's grid and what every message carries.

        Args:
            grid: Sends messages and collects replies.
            settings_hash: Refused by a site that runs other settings.
            num_sites: How many sites take part; the run waits for all of them.
            round_timeout: Seconds that a site may take to reply.
            min_replies: So many end a round without the sites that are silent; all by default.
            compression: How weights travel in rounds of training.
        """
        self._grid = grid
        self._hash = settings_hash
        self._num_sites = num_sites
        self._timeout = round_timeout
        self._spared = 0 if min_replies is None else max(0, num_sites - min_replies)
        self._compression = compression
        self._names: dict[int, str] = {}

    def census(self) -> list[Reply]:
        """Waits for the sites, and asks each for its name and its counts."""
        replies = self._collect(protocol.CENSUS, 0, {node: {} for node in self._wait()})
        if not replies:
            raise SiteError("every site's privacy budget is spent")
        for message in replies:
            name = str(message.content.config_records[protocol.IDENTITY]["site"])
            self._names[_node(message)] = name
        if len(set(self._names.values())) != len(replies):
            raise SiteError(f"two sites have one name: {sorted(self._names.values())}")
        return _ordered(Reply.of(self._name(_node(reply)), reply.content) for reply in replies)

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
        method = method_for(kind, self._compression)
        shared = array_records(components, method)
        records = {
            node: {**shared, **array_records((own or {}).get(name, {}))}
            for node, name in self._names.items()
            if sites is None or name in sites
        }
        return _ordered(
            Reply.of(
                self._name(_node(reply)),
                reply.content,
                components,
                method,
                size_of(records[_node(reply)]),
            )
            for reply in self._collect(kind, round_number, records)
        )

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
        round_number: int,
        records: Mapping[int, Mapping[str, ArrayRecord]],
    ) -> list[Message]:
        """Sends each node its records, and returns the replies of those that have not spent all."""

        def message(node: int) -> Message:
            content = request(self._hash, round_number, records[node])
            return Message(content, message_type=kind, dst_node_id=node, group_id=str(round_number))

        needed = self._needed(kind, len(records))
        collected = collect(self._grid, records.keys(), message, needed, self._timeout)
        for reply in collected.replies:
            self._check(reply, kind)
        if len(collected.replies) < needed:
            names = ", ".join(sorted(self._name(node) for node in collected.missing))
            raise SiteError(f"no reply to {kind} within {self._timeout:.0f} s from {names}")
        spent = [reply for reply in collected.replies if is_spent(reply.content)]
        for reply in spent:
            self._names.pop(_node(reply), None)
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
        name = self._name(_node(reply))
        if reply.has_error():
            raise SiteError(f"{name} was lost during {kind} (Flower's code {reply.error.code})")
        if not is_spent(reply.content):
            check_success(name, kind, reply.content)

    def _name(self, node: int) -> str:
        return self._names.get(node, f"site at node {node}")


def _node(reply: Message) -> int:
    return int(reply.metadata.src_node_id)


def _ordered(replies: Iterable[Reply]) -> list[Reply]:
    return sorted(replies, key=lambda reply: reply.site)
