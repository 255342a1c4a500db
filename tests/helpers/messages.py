"""Asking a site as Flower does: one message in, one message out, in this process."""

from collections.abc import Mapping, Sequence

from flwr.app import Message
from torch import Tensor

from configs.compose import flatten
from simulations.engine.in_process import answer, order


def sent(
    kind: str,
    overrides: Sequence[str],
    settings_hash: str,
    arrays: Mapping[str, Mapping[str, Tensor]] | None = None,
    site: int = 0,
    round_number: int = 1,
) -> Message:
    """A site's reply to one message."""
    message = order(kind, settings_hash, arrays or {}, site, round_number)
    run_config = {"config-name": "config", "overrides": flatten(overrides)}
    return answer(message, site, 3, run_config)
