"""Takes the replies of one round and aggregates them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from mediffusion_core.messaging.protocol import CONTROLS, WEIGHTED_BY
from mediffusion_core.settings import Weighting
from server.messages import Reply
from server.strategy.aggregation import RunningMean, site_weight
from server.strategy.scaffold import Controls, Nested, remembered

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Aggregated:
    """The result of a round.

    Attributes:
        components: The aggregate of each component that a site trained.
        sites: By component, the sites in its aggregate; None for all that trained it.
        set_aside: By site, why its reply does not count.
        tolerated: By component, how many malicious sites it tolerates, where the replies were too
            few for those that the run assumes.
    """

    components: Mapping[str, StateDict]
    sites: Mapping[str, list[str]] | None = None
    set_aside: Mapping[str, str] = field(default_factory=dict)
    tolerated: Mapping[str, int] = field(default_factory=dict)

    def counts(self, component: str, site: str) -> bool:
        """Whether a site that trained a component is in its aggregate."""
        return self.sites is None or site in self.sites.get(component, ())


class Aggregator(Protocol):
    """Takes the replies of a round one by one, and aggregates them at its end."""

    def take(self, reply: Reply) -> None:
        """Adds a reply."""

    def aggregated(self) -> Aggregated:
        """The result; to be called once, after the last reply."""


class MeanOfReplies:
    """The mean of each component over the sites that trained it, reply by reply.

    Autoencoder and UNet are weighted by the images a site trained on, the head by the labelled:
    a site without a label would otherwise add its untrained head.
    """

    def __init__(self, components: Collection[str], weighting: Weighting) -> None:
        """Takes the names of the components, and how a site's images weight it."""
        self._weighting = weighting
        self._running = {component: RunningMean() for component in components}

    def take(self, reply: Reply) -> None:
        """Adds a site's reply."""
        for component, running in self._running.items():
            weight = site_weight(reply.metrics, WEIGHTED_BY[component], self._weighting)
            running.add(reply.components[component], weight)

    def aggregated(self) -> Aggregated:
        """The means, to be taken once; without the components that no site trained."""
        means: dict[str, StateDict] = {}
        for component, running in self._running.items():
            mean = running.mean()
            if mean is not None:
                means[component] = mean
        return Aggregated(means)


class Gathering:
    """Takes each reply of a round, and keeps its control variates for the next one."""

    def __init__(self, aggregator: Aggregator) -> None:
        """Takes the aggregator of weights and moments."""
        self._aggregator = aggregator
        self._controls: list[Reply] = []

    def take(self, reply: Reply) -> None:
        """Takes a reply; its weights and moments go to the aggregator alone."""
        self._aggregator.take(reply)
        controls = {n: s for n, s in reply.components.items() if n in CONTROLS.values()}
        if controls:
            self._controls.append(replace(reply, components=controls))

    def aggregated(self) -> Aggregated:
        """The result; to be called once."""
        return self._aggregator.aggregated()

    def remembered(self, before: Controls, aggregated: Aggregated) -> Nested:
        """The control variates after the round: new ones of the sites that count."""
        return remembered(before, self._controls, aggregated.counts)
