"""The sites of a run, reached by Flower.

A site that sends no reply in time takes part no more, so that later rounds do not wait for it. It
takes part again when it has answered a census, and it is asked for one after a pause that doubles
with each silence.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.site_keys import fingerprint, read_keys
from mediffusion_core.settings import Settings
from server.audit import RunAudit
from server.dispatch import Waiting, collect, received, still_waiting
from server.messages import RefusedReplyError, Reply, SiteError, request
from server.outcomes import Outcome
from server.reply_contract import ReplyContract
from server.sites import Receive, Records, Sites

LOOK = 0.1
"""Seconds between two looks at which nodes are there."""
AFTER_FAILURE = 10.0
"""Seconds after which a node is asked for its census again."""


class FlowerSites(Sites):
    """The sites of one run, reached by Flower."""

    def __init__(
        self,
        grid: Grid,
        settings: Settings,
        contract: ReplyContract,
        audit: RunAudit,
        keys: Path | None = None,
    ) -> None:
        """Takes Flower's grid, the run's settings, the contract of replies, and the run's audit.

        With the folder of the registered sites' keys a name belongs to its key.
        """
        super().__init__(settings, contract)
        self._grid = grid
        self._audit = audit
        self._keys = keys
        self._round = 0
        self._hash = settings.fingerprint()
        self._expected = settings.num_participants
        self._timeout = settings.federation.round_timeout
        self._grace = settings.federation.grace_period
        self._joining: dict[str, Waiting] = {}
        self._silences: Counter[int] = Counter()
        self._not_before: dict[int, float] = {}

    def newcomers(self) -> list[Reply]:
        """The census of sites that came, or came back, since the last message.

        Waits only where fewer than the minimum are left.

        Raises:
            SiteError: if they stay fewer.
        """
        deadline = time.monotonic() + self._timeout
        replies = self._joined()
        while len(self._nodes) < self._minimum:
            if time.monotonic() > deadline:
                raise SiteError(f"{len(self._nodes)} sites are left, {self._minimum} are needed")
            time.sleep(LOOK)
            replies += self._joined()
        return sorted(replies, key=lambda reply: reply.site)

    def _joined(self) -> list[Reply]:
        """Takes the answers of nodes that were asked for their census, and asks new ones."""
        now = time.monotonic()
        there = {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}
        replies: list[Reply] = []
        self._joining = still_waiting(self._joining, there)
        for node, content in received(self._grid, self._joining):
            if not self._count(protocol.CENSUS, node, content, self._admit, replies.append):
                self._not_before[node] = now + AFTER_FAILURE
        known = {*self._nodes.values(), *(one.node for one in self._joining.values())}
        resting = {node for node, moment in self._not_before.items() if now < moment}
        new = sorted(there.keys() - known - resting)
        messages = [self._message(protocol.CENSUS, 0, node, {}) for node in new]
        for sent, node in zip(self._grid.push_messages(messages) if new else (), new, strict=False):
            if sent:
                self._joining[sent] = Waiting(node, there[node])
        return replies

    def _wait(self) -> list[int]:
        begun = time.monotonic()
        enough_since = None
        while len(nodes := sorted(self._grid.get_node_ids())) < self._expected:
            now = time.monotonic()
            if len(nodes) < self._minimum:
                enough_since = None
            elif enough_since is None:
                enough_since = now
            elif now - enough_since > self._grace:
                return nodes
            if now - begun > self._timeout:
                raise SiteError(f"{len(nodes)} sites came in time, and {self._minimum} are needed")
            time.sleep(LOOK)
        return nodes

    def _exchange(
        self, kind: str, round_number: int, records: Records, receive: Receive, needed: int
    ) -> None:
        def message(node: int) -> Message:
            return self._message(kind, round_number, node, records[node])

        self._round = round_number
        waits = (needed, self._timeout, self._grace)
        for node in sorted(collect(self._grid, records.keys(), message, receive, *waits)):
            receive(node, RefusedReplyError("sent no reply in time", Outcome.SILENT))
            self._nodes.pop(self._name(node), None)
            self._silences[node] += 1
            pause = self._timeout * (2 ** self._silences[node] - 2)
            self._not_before[node] = time.monotonic() + pause

    def _note(self, kind: str, node: int, site: str, outcome: Outcome) -> None:
        """Writes the outcome of a message into the audit log."""
        if not self._audit.kept:
            return
        keys = {one.node_id: one.public_key for one in self._grid.get_nodes()}
        self._audit.write(
            "reply",
            site=site,
            key=fingerprint(keys.get(node, b"")),
            kind=kind,
            round=0 if kind == protocol.CENSUS else self._round,
            outcome=outcome,
        )

    def _may_have(self, node: int, name: str) -> bool:
        """A name belongs to its registered key, or without keys to the node that came first.

        Flower authenticates the key of each node, and tells it to the ServerApp.
        """
        there = {one.node_id: one for one in self._grid.get_nodes()}
        if self._keys is not None:
            return node in there and read_keys(self._keys).get(name) == there[node].public_key
        called = there[node].name if node in there else ""  # by `flwr supernode register`
        holder = self._nodes.get(name, node)
        return called in ("", name) and (holder == node or holder not in there)

    def _message(
        self, kind: str, round_number: int, node: int, records: Mapping[str, ArrayRecord]
    ) -> Message:
        content = request(self._hash, round_number, records)
        return Message(content, message_type=kind, dst_node_id=node, group_id=str(round_number))
