"""One message to each of several sites, and what comes back before a deadline.

A site that goes is asked again when it is back, and a round ends without it where enough others
have answered. Replies belong to the message that was asked last: a late one to an earlier message
is never looked at.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

GONE = {
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
}
"""Flower's words for a site that went with a message or a reply; any other error is the site's."""
PAUSE = 1.0
"""Seconds between two looks at who is there and what has come."""


@dataclass(frozen=True)
class Collected:
    """Replies, errors of sites among them, and the nodes from which none came."""

    replies: list[Message]
    missing: set[int]


@dataclass(frozen=True)
class _Asked:
    node: int
    since: str
    """When the node had come, as it was asked."""


def collect(
    grid: Grid,
    nodes: Collection[int],
    message: Callable[[int], Message],
    needed: int,
    timeout: float,
) -> Collected:
    """Asks sites and waits for them.

    Args:
        grid: Sends messages and collects replies.
        nodes: Whom to ask.
        message: What to ask a node.
        needed: With so many replies the others are waited for only as long as they are there.
        timeout: Seconds after which nobody is waited for.
    """
    deadline = time.monotonic() + timeout
    missing, replies = set(nodes), list[Message]()
    asked: dict[str, _Asked] = {}
    while missing:
        there = {node.node_id: node.last_activated_at for node in grid.get_nodes()}
        asked = _still_with_their_site(asked, there)
        silent = {one.node for one in asked.values()}
        fresh = sorted((missing & there.keys()) - silent)
        ids = grid.push_messages([message(node) for node in fresh]) if fresh else ()
        # One that Flower did not take has no id, and is sent again at the next look.
        asked |= {
            sent: _Asked(node, there[node]) for sent, node in zip(ids, fresh, strict=False) if sent
        }
        for reply in grid.pull_messages(set(asked)) if asked else ():
            answered = asked.pop(reply.metadata.reply_to_message_id)
            if not (reply.has_error() and reply.error.code in GONE):
                replies.append(reply)
                missing.discard(answered.node)
        enough = len(replies) >= needed and not asked and not missing & there.keys()
        left = deadline - time.monotonic()
        if not missing or enough or left <= 0:
            break
        time.sleep(min(PAUSE, left))
    return Collected(replies, missing)


def _still_with_their_site(
    asked: Mapping[str, _Asked], there: Mapping[int, str]
) -> dict[str, _Asked]:
    """The messages whose site is still the process that was asked.

    A site that was killed has forgotten its message. Where it is back before Flower takes it for
    gone, no error ever tells of that; that it came anew does.
    """
    return {sent: one for sent, one in asked.items() if there.get(one.node, one.since) == one.since}
