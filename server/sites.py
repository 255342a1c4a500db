"""The sites of one run: which take part, what they are asked, and which replies count.

A site that fails, stays silent or breaks the reply contract is set aside for that message. The run
goes on with the others as long as `federation.min_sites` answer, and asks the site again with the
next message. A site that appears later is asked for its census and takes part from then on.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.compression import message_compression
from mediffusion_core.settings import Settings
from server.messages import (
    Census,
    RefusedReplyError,
    Reply,
    SiteError,
    array_records,
    size_of,
)
from server.outcomes import Outcome
from server.reply_contract import Asked, ReplyContract

StateDict = Mapping[str, Tensor]
Records = Mapping[int, Mapping[str, ArrayRecord]]
"""By node, the arrays that it is sent."""
Answer = RecordDict | RefusedReplyError
"""The content of a reply, or the reason why there is none."""
Receive = Callable[[int, Answer], bool]
"""Takes a node and its answer. Returns whether it counts."""


@dataclass(frozen=True)
class SetAside:
    """A site whose reply to a kind of message did not count, and why."""

    site: str
    kind: str
    reason: str
    code: Outcome


log = logging.getLogger(__name__)


class Sites(ABC):
    """The sites of one run. A subclass carries the messages."""

    def __init__(self, settings: Settings, contract: ReplyContract) -> None:
        """Takes the run's settings, and the contract that replies must keep."""
        self._minimum = settings.min_sites
        self._compression = settings.federation.compression
        self._contract = contract
        shared = settings.privacy.secure_aggregation.enabled
        planned = shared or settings.federation.client_level.enabled
        self._planned = settings.num_participants if planned else None
        self._summed = settings.counted_sites if shared else 0
        self._nodes: dict[str, int] = {}
        self._census: dict[str, Census] = {}
        self._set_aside: list[SetAside] = []
        self._contacts: dict[str, float] = {}

    @property
    def sites(self) -> list[str]:
        """Names of the sites that take part, in order."""
        return sorted(self._nodes)

    def take_set_aside(self) -> list[SetAside]:
        """The replies that did not count since the last call."""
        taken, self._set_aside = self._set_aside, []
        return taken

    def take_contacts(self) -> dict[str, float]:
        """By site the time of its last reply since the last call, in seconds since 1970.

        A reply that did not count is one too.
        """
        taken, self._contacts = self._contacts, {}
        return taken

    def exclude(self, site: str, kind: str, reason: str) -> None:
        """Sets aside a reply that kept the contract and is too far from the others."""
        self._set_aside.append(SetAside(site, kind, reason, Outcome.BOUND))
        self._note(kind, self._nodes[site], site, Outcome.BOUND)

    def census(self) -> list[Reply]:
        """Waits for the sites, and asks each for its name and its counts.

        Raises:
            SiteError: if fewer than the minimum answer.
        """
        nodes = self._wait()
        replies: list[Reply] = []

        def receive(node: int, content: Answer) -> bool:
            return self._count(protocol.CENSUS, node, content, self._admit, replies.append)

        self._exchange(protocol.CENSUS, 0, {node: {} for node in nodes}, receive, self._minimum)
        self._refuse_too_few(protocol.CENSUS, len(replies), self._minimum)
        return _ordered(replies)

    @abstractmethod
    def newcomers(self) -> list[Reply]:
        """The census of sites that came, or came back, since the last message."""

    def ask(
        self,
        kind: str,
        round_number: int,
        components: Mapping[str, StateDict],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, StateDict]] | None = None,
        take: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Sends one kind of message, and returns the replies that count, ordered by site.

        Args:
            kind: Of message.
            round_number: Goes with it.
            components: Weights that go with it to all.
            sites: Names of those asked; all by default.
            own: By site's name, what goes to that site alone.
            take: Gets each reply that counts, once and as it comes. Of its components the returned
                reply has the ledger tip alone, so that no two replies need be in memory at once.

        Raises:
            SiteError: if too few replies count.
        """
        shared = array_records(components, message_compression(kind, self._compression))
        records = {
            node: {**shared, **array_records((own or {}).get(name, {}))}
            for name, node in self._nodes.items()
            if sites is None or name in sites
        }
        needed = self._needed(kind, len(records))
        asked = Asked(kind, round_number, components)
        replies = list[Reply]()

        def read(node: int, content: RecordDict) -> Reply:
            name, received = self._name(node), size_of(records[node])
            traffic = {"bytes_received": received, "bytes_sent": size_of(content.array_records)}
            checked = self._contract.read(asked, self._census[name], content)
            return Reply(name, checked.components, checked.metrics, traffic=traffic)

        def keep(reply: Reply) -> None:
            if take is not None:
                take(reply)
                tip = {n: s for n, s in reply.components.items() if n == protocol.LEDGER_TIP}
                reply = replace(reply, components=tip)
            replies.append(reply)

        def receive(node: int, content: Answer) -> bool:
            return self._count(kind, node, content, read, keep)

        self._exchange(kind, round_number, records, receive, needed)
        self._refuse_too_few(kind, len(replies), needed)
        return _ordered(replies)

    @abstractmethod
    def _wait(self) -> list[int]:
        """The nodes that are asked for their census, once enough are there.

        Raises:
            SiteError: if fewer than the minimum come in time.
        """

    @abstractmethod
    def _exchange(
        self, kind: str, round_number: int, records: Records, receive: Receive, needed: int
    ) -> None:
        """Sends each node its records, and calls `receive` once for each node.

        Once `needed` replies count, nodes that are away need not be waited for.
        """

    @abstractmethod
    def _may_have(self, node: int, name: str) -> bool:
        """Whether a node may take part under that name."""

    @property
    def _full(self) -> bool:
        """Whether no other site may take part: noise is planned for a number of sites."""
        return self._planned is not None and len(self._census) >= self._planned

    def _admit(self, node: int, content: RecordDict) -> Reply:
        """Lets a site take part.

        Raises:
            RefusedReplyError: if its census breaks the contract, or its name is another site's.
        """
        name, census, head = self._contract.census(content)
        if not self._may_have(node, name):
            raise RefusedReplyError(f"took the name {name}, which is another site's", Outcome.NAME)
        if self._full and name not in self._census:
            raise RefusedReplyError(
                "came after all sites that the noise is planned for", Outcome.LATE
            )
        self._nodes[name], self._census[name] = node, census
        return Reply(name, head, census=census)

    def _count(
        self,
        kind: str,
        node: int,
        content: Answer,
        read: Callable[[int, RecordDict], Reply],
        keep: Callable[[Reply], None],
    ) -> bool:
        """Keeps a node's reply if it counts, or sets its site aside."""
        name, outcome, reason = self._name(node), Outcome.COUNTED, ""
        try:
            if isinstance(content, RefusedReplyError):
                raise content
            reply = read(node, content)
        except RefusedReplyError as error:
            outcome, reason = error.code, str(error)
        except Exception:  # whatever a site sends must not end the run
            log.exception("a reply of %s to %s cannot be checked", name, kind)
            outcome, reason = Outcome.UNCHECKED, "sent a reply that cannot be checked"
        if outcome is Outcome.COUNTED:
            keep(reply)
            name = self._name(node)  # a census gives it
        else:
            self._set_aside.append(SetAside(name, kind, reason, outcome))
        if outcome is not Outcome.SILENT and name in self._nodes:
            self._contacts[name] = round(time.time(), 1)
        self._note(kind, node, name, outcome)
        return outcome is Outcome.COUNTED

    def _note(self, kind: str, node: int, site: str, outcome: Outcome) -> None:  # noqa: B027
        """Takes the outcome of a message to a site. Sites in this process keep no audit log."""

    def _needed(self, kind: str, asked: int) -> int:
        """How many replies must count, so that the run keeps its minimum of sites.

        Training needs one reply, and a masked sum those of all sites whose noise counts. Encoding
        needs none: the only sites asked may be those that were away before.
        """
        spare = max(0, len(self._nodes) - self._minimum)
        least = 0 if kind == protocol.ENCODE else min(1, asked)
        if kind in protocol.SECURE:
            least = max(least, self._summed)
        return max(least, asked - spare)

    def _refuse_too_few(self, kind: str, counted: int, needed: int) -> None:
        if counted >= needed:
            return
        reasons = [f"{one.site} {one.reason}" for one in self._set_aside if one.kind == kind]
        why = ": " + "; ".join(reasons) if reasons else ""
        raise SiteError(f"{counted} replies to {kind} count, {needed} are needed{why}")

    def _name(self, node: int) -> str:
        """The site's name, or a label before its census."""
        names = {known: name for name, known in self._nodes.items()}
        return names.get(node, f"site at node {node}")


def _ordered(replies: Sequence[Reply]) -> list[Reply]:
    return sorted(replies, key=lambda reply: reply.site)
