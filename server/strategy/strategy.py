"""From the sites' replies of a round to the next global weights, component by component."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mediffusion_core.messaging.protocol import AUTOENCODER, CONTROLS, HEAD, UNET
from mediffusion_core.settings import Settings
from server.messages import Reply
from server.state import RunState
from server.strategy.aggregation import MeanOfReplies, moving_average
from server.strategy.client_level import ClientLevelPrivacy
from server.strategy.scaffold import remembered
from server.strategy.server_optimizers import server_step

StateDict = Mapping[str, Tensor]


class Means(Protocol):
    """The means of one round, reply by reply."""

    def take(self, reply: Reply) -> None:
        """Adds a reply."""

    def means(self) -> Mapping[str, StateDict]:
        """The means by component, to be taken once."""


class Strategy:
    """Aggregation, the server's optimizers and the moving average of one run."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Takes the run's settings and folder."""
        federation = settings.federation
        self._weighting, self._ema_decay = federation.weighting, federation.ema_decay
        server = federation.server
        self._optimizers = {AUTOENCODER: server.autoencoder, UNET: server.unet, HEAD: server.head}
        self._client_level = None
        if federation.client_level.enabled:
            sites = asked_of(settings, settings.num_participants)
            self._client_level = ClientLevelPrivacy(federation.client_level, sites, folder)

    def gather(
        self, stage: str, round_number: int, names: Collection[str], state: RunState
    ) -> "Gathering":
        """What takes the replies of a round.

        Args:
            stage: Of the round.
            round_number: From 1.
            names: The components that the stage trains.
            state: Of the run, as the sites are sent it.
        """
        if self._client_level is not None:
            # Of the weights alone: moments have no noise.
            sent = {name: state.weights[name] for name in names if name in self._optimizers}
            return Gathering(self._client_level.gather(stage, round_number, sent))
        return Gathering(MeanOfReplies(names, self._weighting))

    def step(self, gathered: "Gathering", state: RunState) -> None:
        """Steps to the mean of the replies. A component that no site trained stays as it is.

        Args:
            gathered: All replies of the round.
            state: Of the run; weights, optimizer memory and control variates are replaced.
        """
        for component, mean in gathered.means.means().items():
            if component not in self._optimizers:
                state.weights[component] = mean
                continue
            state.weights[component], memory = server_step(
                self._optimizers[component],
                state.weights[component],
                mean,
                state.optimizer_memory.get(component, {}),
            )
            if memory:
                state.optimizer_memory[component] = memory
        state.controls = remembered(state.controls, gathered.controls)

    def average(self, state: RunState, round_number: int) -> None:
        """Moves the averages of UNet and head towards the weights after a joint round."""
        for name, average in state.averages.items():
            state.averages[name] = moving_average(
                average, state.weights[name], self._ema_decay, round_number
            )

    def spent(self) -> dict[str, Any] | None:
        """What client-level privacy has cost so far; None without it."""
        return self._client_level.spent() if self._client_level else None


class Gathering:
    """The replies of one round, taken one by one: their means, and what is kept of each site."""

    def __init__(self, means: Means) -> None:
        """Takes what makes the means."""
        self.means = means
        self.controls: list[Reply] = []
        """Each site's control variates; nothing where the run has none."""

    def take(self, reply: Reply) -> None:
        """Takes a reply; its weights and moments are not kept."""
        self.means.take(reply)
        controls = {n: s for n, s in reply.components.items() if n in CONTROLS.values()}
        if controls:
            self.controls.append(replace(reply, components=controls))


def asked_of(settings: Settings, sites: int) -> int:
    """How many of so many sites train in a round; at least one."""
    return max(1, round(settings.federation.fraction_train * sites))
