"""How long a process that Flower starts for a message may take to come up.

Flower takes back a task whose process has not called within 30 seconds, and starts it anew. To
import what it needs takes seconds of a core; on a busy host it came too late each time, for ever.
"""

import flwr.supercore.corestate.in_memory_corestate as in_memory
import flwr.supercore.corestate.sql_corestate as sql

START_LIMIT = 120
"""Seconds. A process that died after its start is given up after twice that."""


def allow_slow_starts() -> None:
    """Gives processes more time before their first sign of life.

    Raises:
        RuntimeError: if the installed Flower has no such limit.
    """
    for state in (in_memory, sql):
        if not hasattr(state, "HEARTBEAT_DEFAULT_INTERVAL"):
            raise RuntimeError(f"{state.__name__} of this Flower has no limit to be changed")
        state.HEARTBEAT_DEFAULT_INTERVAL = START_LIMIT
