"""A round of secure aggregation: four messages to each site, and the sum over the sites.

The server adds masked sums as they come and keeps none, so that it never has one site's own sum.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.omission import Layout
from mediffusion_core.privacy.secure_aggregation.grid import from_steps
from mediffusion_core.privacy.secure_aggregation.keys import KEY_BYTES
from mediffusion_core.privacy.secure_aggregation.shamir import SHARE_BYTES
from mediffusion_core.privacy.secure_aggregation.sites import DEALT_BYTES, PublicKeys
from mediffusion_core.privacy.secure_aggregation.sum import MaskedSum
from mediffusion_core.settings import Settings
from server.messages import Reply, SiteError

StateDict = Mapping[str, Tensor]
Components = Mapping[str, StateDict]


class Ask(Protocol):
    """Sends a kind of message to sites, and returns the replies that count, ordered by site."""

    def __call__(
        self,
        kind: str,
        number: int,
        components: Components,
        sites: Sequence[str],
        own: Mapping[str, Components] | None = None,
        take: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Arguments as of `Sites.ask`."""
        ...


def secure_sum(
    settings: Settings, ask: Ask, number: int, sent: Components, sites: Sequence[str]
) -> tuple[dict[str, Tensor], list[Reply]]:
    """The sum over the sites of clipped gradients of the head, with the noise of all.

    Args:
        settings: Of the run.
        ask: Asks sites; it raises `SiteError` if fewer answer than the noise counts on.
        number: Of the round of the joint stage.
        sent: UNet and head as the sites are sent them.
        sites: Who may take part.

    Returns:
        The sum (float64) by the head's parameters, and the sites' replies with their parts, which
        have no weights, moments or metrics.

    Raises:
        SiteError: if too few sites answer a message, or the shares take no masks off.
    """
    head, threshold = sent[protocol.HEAD], settings.counted_sites
    advertised = ask(protocol.KEYS, number, {}, sites)
    place = {reply.site: index for index, reply in enumerate(advertised)}
    keys = torch.stack([reply.components[protocol.PUBLIC_KEYS]["keys"] for reply in advertised])
    roster = {protocol.ROSTER: {"keys": keys}}  # (n, 2, 32)
    dealt = ask(protocol.SHARES, number, roster, list(place))
    own = {reply.site: {protocol.DEALT: _dealt_for(reply.site, dealt, place)} for reply in dealt}
    total = MaskedSum(sum(value.numel() for value in head.values()))

    def take(reply: Reply) -> None:
        masked = reply.components[protocol.MASKED]["sum"].numpy().view(np.uint64)
        total.add(place[reply.site], masked)

    dealers = [reply.site for reply in dealt]
    replies = ask(protocol.TRAIN_JOINT, number, sent, dealers, own, take)
    answered = torch.zeros(len(place), dtype=torch.uint8)
    answered[[place[reply.site] for reply in replies]] = 1
    asked = {protocol.ANSWERED: {"sites": answered}}
    revealed = ask(protocol.UNMASK, number, asked, [reply.site for reply in replies])
    public = [PublicKeys(*(one.numpy().tobytes() for one in pair)) for pair in keys]
    shares = [_shares_of(index, revealed, place) for index in range(len(place))]
    try:
        whole = total.unmasked(public, [place[site] for site in dealers], shares, threshold)
    except ValueError as error:
        raise SiteError(f"the sum of joint round {number} stays masked: {error}") from None
    return _by_name(from_steps(whole, settings.privacy.max_grad_norm), head), replies


def secure_layouts(kind: str, components: Components) -> dict[str, Layout]:
    """Names, shapes and types of the arrays in a reply of secure aggregation.

    Args:
        kind: Of the message.
        components: That it carries.
    """
    if kind == protocol.KEYS:
        return {protocol.PUBLIC_KEYS: {"keys": (torch.Size([2, KEY_BYTES]), torch.uint8)}}
    if kind == protocol.SHARES:
        count = len(components[protocol.ROSTER]["keys"])
        return {protocol.DEALT: {"sealed": (torch.Size([count, DEALT_BYTES]), torch.uint8)}}
    if kind == protocol.UNMASK:
        count = len(components[protocol.ANSWERED]["sites"])
        return {protocol.REVEALED: {"shares": (torch.Size([count, SHARE_BYTES]), torch.uint8)}}
    length = sum(value.numel() for value in components[protocol.HEAD].values())
    return {protocol.MASKED: {"sum": (torch.Size([length]), torch.int64)}}


def _dealt_for(site: str, dealt: Sequence[Reply], place: Mapping[str, int]) -> dict[str, Tensor]:
    """The shares that all other sites dealt to a site."""
    present = torch.zeros(len(place), dtype=torch.uint8)
    sealed = torch.zeros(len(place), DEALT_BYTES, dtype=torch.uint8)
    for reply in dealt:
        if reply.site != site:
            dealer = place[reply.site]
            present[dealer] = 1
            sealed[dealer] = reply.components[protocol.DEALT]["sealed"][place[site]]
    return {"present": present, "sealed": sealed}


def _shares_of(index: int, revealed: Sequence[Reply], place: Mapping[str, int]) -> dict[int, bytes]:
    """Shares of one site's secret, by the place of the site that revealed them."""
    return {
        place[reply.site]: reply.components[protocol.REVEALED]["shares"][index].numpy().tobytes()
        for reply in revealed
    }


def _by_name(values: NDArray[np.float64], head: StateDict) -> dict[str, Tensor]:
    """A vector (d,) as tensors of the head's shapes, which stand in the order of their names."""
    names = sorted(head)  # a message may have them in another order
    parts = torch.from_numpy(values).split([head[name].numel() for name in names])
    return {name: part.reshape(head[name].shape) for name, part in zip(names, parts, strict=True)}
