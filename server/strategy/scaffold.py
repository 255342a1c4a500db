"""SCAFFOLD at the server (arXiv 1910.06378): each site's gradient c_k, and their mean c.

The server keeps every c_k, so that a site keeps nothing and a continued run has all it needs in the
server's checkpoint. It learns no more by that: from the changes that a site sends in the paper, c_k
follows by summing. A site that is not drawn in a round keeps its weight in c, which is

    c = Σ w_k c_k / Σ w_k    over all sites that have sent one, weighted by the images it saw,

so that the sites' corrections c - c_k cancel in the component's mean. (The paper adds each round's
changes to c by |S| / N, which is that sum for equal weights.) The price: checkpoints hold the
component once more for each site.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mediffusion_core.messaging.protocol import CONTROLS, WEIGHTED_BY
from server.messages import Reply
from server.strategy.aggregation import weighted_mean

StateDict = Mapping[str, Tensor]

CONTROL = "control_"
"""Before a component's name: the sites' gradients of it, as `SITE/PARAMETER`."""
WEIGHT = "site_weight"
"""In a parameter's place: how much the site counts in the mean."""


def remembered(
    components: Mapping[str, StateDict], replies: Sequence[Reply]
) -> dict[str, StateDict]:
    """The gradients to keep after a round: new ones of those who trained, old ones of the others.

    Args:
        components: The server's, with what this function returned before.
        replies: To the round; without control variates none holds a gradient.

    Returns:
        `control_COMPONENT` of each component for which a gradient came, to be put into components.
    """
    kept: dict[str, StateDict] = {}
    for component, control in CONTROLS.items():
        sites = _by_site(components.get(CONTROL + component, {}))
        for reply in replies:
            weight = reply.metrics[WEIGHTED_BY[component]]
            if weight and control in reply.components:
                sites[reply.site] = {**reply.components[control], WEIGHT: torch.tensor(weight)}
        if sites:
            kept[CONTROL + component] = {
                f"{site}/{name}": value
                for site, values in sites.items()
                for name, value in values.items()
            }
    return kept


def corrections(
    components: Mapping[str, StateDict], asked: Collection[str]
) -> dict[str, dict[str, StateDict]]:
    """The corrections c - c_k by site and component; none where a gradient is not known yet.

    Args:
        components: The server's, with what `remembered` returned.
        asked: Names of the sites that train next.

    Returns:
        By site, the records of `protocol.CONTROLS` that are for it alone.
    """
    own: dict[str, dict[str, StateDict]] = {site: {} for site in asked}
    for component, control in CONTROLS.items():
        sites = _by_site(components.get(CONTROL + component, {}))
        if not sites:
            continue
        weights = [float(values.pop(WEIGHT)) for values in sites.values()]
        mean = weighted_mean(list(sites.values()), weights)
        for site in sites.keys() & own.keys():
            own[site][control] = {name: mean[name] - sites[site][name] for name in mean}
    return own


def _by_site(kept: StateDict) -> dict[str, dict[str, Tensor]]:
    sites: dict[str, dict[str, Tensor]] = {}
    for key, value in kept.items():
        site, _, name = key.rpartition("/")  # no parameter's name has a slash
        sites.setdefault(site, {})[name] = value
    # A checkpoint gives them back in another order, and a sum's last bit depends on the order.
    return dict(sorted(sites.items()))
