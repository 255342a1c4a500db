"""Registration of sites at the SuperLink: their public keys in a folder at the server.

A key that appears in the folder is registered with the running SuperLink. A key that disappears is
revoked: its site is disconnected at its next heartbeat, and the key is never accepted again.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID

from mediffusion_core.common.audit_log import AuditLog
from mediffusion_core.common.errors import AuditError, UserError
from mediffusion_core.common.logs import log
from mediffusion_core.messaging.site_keys import read_keys

PERIOD = 2.0
"""Seconds between two reads of the folder."""
UNREGISTERED = "unregistered"


class NodeInfo(Protocol):
    """The used attributes of a node at the SuperLink."""

    node_id: int
    public_key: bytes
    status: str
    name: str


class Nodes(Protocol):
    """The part of Flower's `LinkState` that holds nodes."""

    def get_node_info(self, *, owner_aids: list[str]) -> list[NodeInfo]:
        """All nodes of an owner, including unregistered ones."""

    def create_node(
        self,
        owner_aid: str,
        owner_name: str,
        public_key: bytes,
        heartbeat_interval: float,
        *,
        name: str | None,
    ) -> int:
        """Registers a key; ValueError if it was registered before."""

    def delete_node(self, owner_aid: str, node_id: int) -> None:
        """Revokes a node's key."""


def synchronise(nodes: Nodes, keys: Mapping[str, bytes]) -> list[str]:
    """Registers and revokes nodes until the SuperLink has those of the given keys.

    Returns:
        The changes, one line each.
    """
    infos = nodes.get_node_info(owner_aids=[NOOP_FLWR_AID])
    known = {bytes(node.public_key): node for node in infos}
    changes = []
    for public_key, node in known.items():
        if public_key not in keys.values() and node.status != UNREGISTERED:
            nodes.delete_node(NOOP_FLWR_AID, node.node_id)
            changes.append(f"sites: revoked {node.name}")
    for site, public_key in keys.items():
        node_before = known.get(public_key)
        if node_before is None:
            nodes.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0, name=site)
            changes.append(f"sites: registered {site}")
        elif node_before.status == UNREGISTERED:
            changes.append(f"sites: refused {site}, its key was revoked before; give it a new one")
    return changes


def watch(nodes: Nodes, folder: Path) -> threading.Thread:
    """Synchronises with the folder in a daemon thread."""
    follower = threading.Thread(target=_follow, args=(nodes, folder), daemon=True)
    follower.start()
    return follower


def _follow(nodes: Nodes, folder: Path) -> None:
    said: list[str] = []
    pause = threading.Event()
    while True:
        try:
            changes = synchronise(nodes, read_keys(folder))
        except UserError as error:
            changes = [f"sites: nothing is changed: {error}"]
        except Exception as error:  # an error of the database must not end the thread
            changes = [f"sites: nothing is changed: {type(error).__name__}"]
        for change in changes:
            if change not in said:
                _tell(change)
        said = changes
        pause.wait(PERIOD)


def _tell(change: str) -> None:
    log.info(change)
    audit = AuditLog.of_environment()
    try:
        if audit is not None:
            audit.append("sites", at="server", change=change.removeprefix("sites: "))
    except AuditError as error:  # must not end the thread that revokes keys
        log.error(f"sites: {error}")
