"""Robust aggregation against f malicious sites.

It needs all replies of a round at once, and keeps them on the disk.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mediffusion_core.messaging.moment_names import MEAN, SQUARE
from mediffusion_core.messaging.protocol import MOMENTS, WEIGHTED_BY
from mediffusion_core.settings import Aggregation, FederationSettings
from server.messages import Reply
from server.robust_statistics import median
from server.spool import Spool
from server.strategy.aggregation import site_weight
from server.strategy.gathering import Aggregated
from server.strategy.rules import Changes, Choice, choose
from server.strategy.scaffold import plain_mean
from server.strategy.server_optimizers import by_component

StateDict = Mapping[str, Tensor]

ADAM_RATIO = 7.3
"""|m| / √v of Adam's moments, at most; `reply_bounds.MAX_STRETCH` derives it."""


class RobustAggregator:
    """Aggregates the components of one round by their rules, after two checks of the changes.

    A site whose change of any component is longer than `federation.norm_bound` allows is set aside
    for the round, rather than shortened: it would keep its direction, and its moments cannot be
    shortened alike. So is a site below `federation.agreement_bound`. Adam's moments are
    aggregated over the same sites and by the same rule as their component.
    """

    def __init__(
        self, federation: FederationSettings, sent: Mapping[str, StateDict], folder: Path
    ) -> None:
        """Takes the settings, the components as they were sent, and a folder for the replies."""
        self._federation, self._sent = federation, sent
        self._spool = Spool(folder)
        self._weights: dict[str, dict[str, float]] = {
            component: {} for component in MOMENTS if component in sent
        }

    def take(self, reply: Reply) -> None:
        """Writes the components that the site trained to the disk."""
        for component, weights in self._weights.items():
            by = WEIGHTED_BY[component]
            weight = site_weight(reply.metrics, by, self._federation.weighting)
            if weight:
                weights[reply.site] = weight
                for name in (component, MOMENTS[component]):
                    self._spool.write(reply.site, name, reply.components[name])

    def aggregated(self) -> Aggregated:
        """The result; to be called once. Deletes the files."""
        ordered = {c: dict(sorted(weights.items())) for c, weights in self._weights.items()}
        changes = {c: self._changes(c, list(sites)) for c, sites in ordered.items() if sites}
        set_aside = self._disagreeing(changes) | self._beyond_bound(changes)
        choices, malicious = dict[str, Choice](), self._federation.num_malicious_sites
        for component, weights in ordered.items():
            counted = {site: n for site, n in weights.items() if site not in set_aside}
            if counted:
                rule = _rule(self._federation, component)
                choices[component] = choose(rule, malicious, counted, changes[component])
        components: dict[str, StateDict] = {}
        for component, choice in choices.items():
            moments = self._combined(MOMENTS[component], choice)
            if choice.trim:
                _keep_adams_bound(moments)
            components[component] = self._combined(component, choice)
            components[MOMENTS[component]] = moments
        self._spool.remove()
        return Aggregated(
            components,
            {component: list(choice.shares) for component, choice in choices.items()},
            set_aside,
            self._too_few(choices),
        )

    def _changes(self, component: str, sites: list[str]) -> Changes:
        products = torch.zeros(len(sites), len(sites), dtype=torch.float64)
        for name, part, stack in self._spool.parts(component, sites):
            before = self._sent[component][name].reshape(-1)[part]
            moved = stack.double() - before.double()  # (n, values)
            products += moved @ moved.T
        return Changes(sites, products)

    def _beyond_bound(self, changes: Mapping[str, Changes]) -> dict[str, str]:
        """By site, why it is set aside. Two sites are equally far from their median."""
        bound, reasons = self._federation.norm_bound, dict[str, str]()
        for component, one in changes.items():
            if bound is None or len(one.sites) < 3:
                continue
            norms = one.norms()
            usual = float(median(list(norms)))
            for site, norm in zip(one.sites, norms.tolist(), strict=True):
                if norm > bound * usual:
                    times = f"{norm / usual:.3g} times the median" if usual else "alone"
                    reasons[site] = (
                        f"changed {component} {times} of the round; "
                        f"federation.norm_bound is {bound:g}"
                    )
        return reasons

    def _disagreeing(self, changes: Mapping[str, Changes]) -> dict[str, str]:
        """By site, why it is set aside. More than f sites cannot all be malicious.

        A median alone is not enough. The honest changes of one weight differ by more than their
        mean, so that one false value of four moves the median nearly as far as it moves a mean.
        """
        malicious, bound = self._federation.num_malicious_sites, self._federation.agreement_bound
        reasons = dict[str, str]()
        for component, one in changes.items():
            if bound is None or len(one.sites) <= 2 * malicious:
                continue
            agreements = one.agreements(malicious)
            least = bound * float(median(list(agreements)).clamp(min=0))
            below = [index for index, value in enumerate(agreements.tolist()) if value < least]
            for index in below if len(below) <= malicious else ():
                reasons[one.sites[index]] = (
                    f"changed {component} with an agreement of {agreements[index]:.3g}; "
                    f"federation.agreement_bound={bound:g} asks for {least:.3g}"
                )
        return reasons

    def _combined(self, name: str, choice: Choice) -> dict[str, Tensor]:
        made = {n: torch.empty(v.shape, dtype=v.dtype) for n, v in self._sent[name].items()}
        for tensor, part, stack in self._spool.parts(name, list(choice.shares)):
            made[tensor].view(-1)[part] = choice.combined(stack).to(stack.dtype)
        return made

    def _too_few(self, choices: Mapping[str, Choice]) -> dict[str, int]:
        """By component, the number of tolerated malicious sites where it is less than f."""
        malicious = self._federation.num_malicious_sites
        return {
            component: choice.tolerated
            for component, choice in choices.items()
            if choice.tolerated is not None and choice.tolerated < malicious
        }


def common_control(
    federation: FederationSettings,
    component: str,
    sites: Mapping[str, StateDict],
    weights: Mapping[str, float],
) -> StateDict:
    """SCAFFOLD's c of the newest counted gradient of each site.

    By the component's rule if that is the median or the trimmed mean, else the mean with limited
    weights; without malicious sites the plain mean.
    """
    malicious = federation.num_malicious_sites
    if not malicious:
        return plain_mean(component, sites, weights)
    rule = _rule(federation, component)
    choice = choose(rule if rule in ("median", "trimmed_mean") else "mean", malicious, weights)
    states = list(sites.values())
    common = {}
    for name, like in states[0].items():
        stack = torch.stack([state[name].reshape(-1) for state in states])
        common[name] = choice.combined(stack).to(like.dtype).reshape(like.shape)
    return common


def _rule(federation: FederationSettings, component: str) -> Aggregation:
    return by_component(federation.server)[component].aggregation


def _keep_adams_bound(moments: Mapping[str, Tensor]) -> None:
    """Raises second moments that are too small for the first ones; both were trimmed by value."""
    for name, mean in moments.items():
        if name.endswith(MEAN):
            square = moments[name.removesuffix(MEAN) + SQUARE]
            torch.maximum(square, (mean / ADAM_RATIO).square(), out=square)
