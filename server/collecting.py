"""One message to each of several sites, and what comes back before a deadline.

A site that goes is asked again when it is back, and a round ends without it where enough others
have answered. Replies belong to the message that was asked last: a late one to an earlier message
is never looked at.
"""

import time
from collections.abc import Callable, Collection
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
"""Seconds between two looks at who is there."""


@dataclass(frozen=True)
class Collected:
    """Replies, errors of sites among them, and the nodes from which none came."""

    replies: list[Message]
    missing: set[int]


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
    while missing and (left := deadline - time.monotonic()) > 0:
        there = missing & set(grid.get_node_ids())
        if not there and len(replies) >= needed:
            break
        if not there:
            time.sleep(min(PAUSE, left))
            continue
        asked = [message(node) for node in sorted(there)]
        for reply in grid.send_and_receive(asked, timeout=left):
            if not (reply.has_error() and reply.error.code in GONE):
                replies.append(reply)
                missing.discard(reply.metadata.src_node_id)
    return Collected(replies, missing)
