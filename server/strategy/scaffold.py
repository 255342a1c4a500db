"""SCAFFOLD at the server (arXiv 1910.06378): each site's gradient c_k, and their mean c.

The server keeps every c_k, so that a site keeps nothing and a continued run has all it needs in the
server's checkpoint. It learns no more by that: from the changes that a site sends in the paper, c_k
follows by summing. A site that is not drawn in a round keeps its weight in c, which is

    c = Σ w_k c_k / Σ w_k    over all sites that have sent one, weighted by the images it saw,

so that the sites' corrections c - c_k cancel in the component's mean. (The paper adds each round's
changes to c by |S| / N, which is that sum for equal weights.) With `federation.num_malicious_sites`
c is the median or trimmed mean, where that is the component's rule, else the mean with limited
weights. The price: checkpoints hold the component once more for each site.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from mediffusion_core.messaging.protocol import CONTROLS, WEIGHTED_BY
from server.messages import Reply
from server.strategy.aggregation import weighted_mean

StateDict = Mapping[str, Tensor]

Controls = Mapping[str, Mapping[str, StateDict]]
"""By component and site, the site's mean gradient of its last round, and its `WEIGHT`."""
Nested = dict[str, dict[str, StateDict]]
"""The same to keep; or by site and record, the components for a site alone."""
WEIGHT = "site_weight"
"""In a parameter's place: how much the site counts in the mean."""


Mean = Callable[[str, Mapping[str, StateDict], Mapping[str, float]], StateDict]
"""Of a component's gradients, by site, with the sites' weights."""


def plain_mean(
    component: str, sites: Mapping[str, StateDict], weights: Mapping[str, float]
) -> StateDict:
    """The weighted mean, whatever the component."""
    return weighted_mean(list(sites.values()), list(weights.values()))


def remembered(
    controls: Controls,
    replies: Sequence[Reply],
    counts: Callable[[str, str], bool] = lambda component, site: True,
) -> Nested:
    """The gradients to keep after a round: new ones of the sites that trained, old ones of others.

    Args:
        controls: What this function returned before.
        replies: To the round; without control variates none holds a gradient.
        counts: Whether a component was aggregated from a site that trained it.
    """
    kept: Nested = {}
    for component, control in CONTROLS.items():
        sites = dict(controls.get(component, {}))
        for reply in replies:
            weight = reply.metrics[WEIGHTED_BY[component]]
            if weight and control in reply.components and counts(component, reply.site):
                sites[reply.site] = {**reply.components[control], WEIGHT: torch.tensor(weight)}
        if sites:
            kept[component] = sites
    return kept


def corrections(controls: Controls, asked: Collection[str], mean: Mean = plain_mean) -> Nested:
    """The corrections c - c_k by site and component; none where a gradient is not known yet.

    Args:
        controls: What `remembered` returned.
        asked: Names of the sites that train next.
        mean: Makes c of the gradients of a component and the weights of their sites, by site.

    Returns:
        By site, the records of `protocol.CONTROLS` that are for it alone.
    """
    own: Nested = {site: {} for site in asked}
    for component, kept in controls.items():
        # In one order, since a sum's last bit depends on it.
        sites = {site: dict(kept[site]) for site in sorted(kept)}
        weights = {site: float(values.pop(WEIGHT)) for site, values in sites.items()}
        common = mean(component, sites, weights)
        for site in sites.keys() & own.keys():
            own[site][CONTROLS[component]] = {
                name: common[name] - value for name, value in sites[site].items()
            }
    return own
