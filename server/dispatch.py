"""Sends a message to each of several sites and collects the replies until a deadline.

A site that goes is asked again when it is back, and a round ends without it where enough others
have answered. A late reply to an earlier message is never read.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from server.messages import RefusedReplyError
from server.outcomes import Outcome
from server.sites import Answer, Receive

log = logging.getLogger(__name__)

GONE = {
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
}
"""Flower's words for a site that went with a message or a reply; any other error is the site's."""
PAUSE = 1.0
"""Seconds between two polls of the connected nodes and the replies."""


@dataclass(frozen=True)
class Waiting:
    """A message that a node has not answered yet."""

    node: int
    since: str
    """When the node had come, as it was asked."""


def collect(
    grid: Grid,
    nodes: Collection[int],
    message: Callable[[int], Message],
    receive: Receive,
    needed: int,
    timeout: float,
    grace: float,
) -> set[int]:
    """Asks sites and waits for them.

    Args:
        grid: Sends messages and collects replies.
        nodes: Whom to ask.
        message: What to ask a node.
        receive: Takes each reply as it comes.
        needed: Once so many replies count, nodes that are away have the grace period to come back.
        timeout: Seconds after which no node is waited for.
        grace: Seconds.

    Returns:
        The nodes from which no reply came.
    """
    deadline = time.monotonic() + timeout
    missing, counted, enough_since = set(nodes), 0, float("inf")
    asked: dict[str, Waiting] = {}
    while missing:
        there = {node.node_id: node.last_activated_at for node in grid.get_nodes()}
        asked = still_waiting(asked, there)
        silent = {one.node for one in asked.values()}
        fresh = sorted((missing & there.keys()) - silent)
        ids = grid.push_messages([message(node) for node in fresh]) if fresh else ()
        # One that Flower did not take has no id, and is sent again at the next poll.
        asked |= {
            sent: Waiting(node, there[node]) for sent, node in zip(ids, fresh, strict=False) if sent
        }
        for node, content in received(grid, asked):
            counted += receive(node, content)
            missing.discard(node)
        now = time.monotonic()
        enough = counted >= needed and not asked and not missing & there.keys()
        enough_since = min(enough_since, now) if enough else float("inf")
        if not missing or now - enough_since >= grace or now >= deadline:
            break
        time.sleep(min(PAUSE, deadline - now))
    return missing


def received(grid: Grid, asked: dict[str, Waiting]) -> Iterator[tuple[int, Answer]]:
    """The replies that have come, each with the node that was asked; takes them off `asked`.

    One message at a time, so that an unreadable reply does not lose others. The sender writes the
    sender's number in a reply, so the node is taken from the message that was sent instead.

    Yields:
        A node, and the content of its reply or why there is none. A site that went is asked again.
    """
    for sent in list(asked):
        try:
            replies = list(grid.pull_messages({sent}))
            content: list[Answer | None] = [_content(reply) for reply in replies]
        except Exception as error:  # Flower reads what a site wrote
            log.warning("a reply cannot be read: %s", error)
            unread = "sent a reply that Flower cannot read"
            content = [RefusedReplyError(unread, Outcome.UNREADABLE)]
        if content:
            node = asked.pop(sent).node
            if content[0] is not None:
                yield node, content[0]


def _content(reply: Message) -> Answer | None:
    """The content of a reply, or the reason why it has none; None if the site left."""
    if not reply.has_error():
        return reply.content
    if reply.error.code in GONE:
        return None
    reason = reply.error.reason if reply.error.code == ErrorCode.INVALID_FAB else ""
    lost = f"was lost (Flower's code {reply.error.code}) {ascii(reason)[1:-1][:200]}"
    return RefusedReplyError(lost.rstrip(), Outcome.LOST)


def still_waiting(asked: Mapping[str, Waiting], there: Mapping[int, str]) -> dict[str, Waiting]:
    """The messages whose site is still the process that was asked.

    A site that was killed has forgotten its message. Where it is back before Flower takes it for
    gone, no error ever tells of that; that it came anew does.

    Args:
        asked: Messages by their id.
        there: By node, when it came.
    """
    return {sent: one for sent, one in asked.items() if there.get(one.node, one.since) == one.since}
