"""From the sites' replies of a round to the next global weights, component by component."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, UNET
from mediffusion_core.settings import Settings
from server.messages import Reply
from server.state import RunState
from server.strategy.aggregation import aggregate, moving_average
from server.strategy.client_level import ClientLevelPrivacy
from server.strategy.server_optimizers import server_step

StateDict = Mapping[str, Tensor]


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

    def step(
        self,
        stage: str,
        round_number: int,
        names: Collection[str],
        state: RunState,
        replies: Sequence[Reply],
    ) -> None:
        """Steps to the mean of the replies. A component that no site trained stays as it is.

        Args:
            stage: Of the round.
            round_number: From 1.
            names: The components that the stage trains.
            state: Of the run; its weights and optimizer memory are replaced.
            replies: To the round.
        """
        for component, mean in self._means(stage, round_number, names, state, replies).items():
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

    def average(self, state: RunState, round_number: int) -> None:
        """Moves the averages of UNet and head towards the weights after a joint round."""
        for name, average in state.averages.items():
            state.averages[name] = moving_average(
                average, state.weights[name], self._ema_decay, round_number
            )

    def spent(self) -> dict[str, Any] | None:
        """The cost of client-level privacy so far; None without it."""
        return self._client_level.spent() if self._client_level else None

    def _means(
        self,
        stage: str,
        round_number: int,
        names: Collection[str],
        state: RunState,
        replies: Sequence[Reply],
    ) -> Mapping[str, StateDict]:
        """The means of a stage's components; with client-level privacy of its weights alone."""
        if self._client_level is not None:
            sent = {name: state.weights[name] for name in names if name in self._optimizers}
            return self._client_level.means(stage, round_number, sent, replies)
        metrics = [reply.metrics for reply in replies]
        means = {
            name: aggregate(
                name, [reply.components[name] for reply in replies], metrics, self._weighting
            )
            for name in names
        }
        return {name: mean for name, mean in means.items() if mean is not None}


def asked_of(settings: Settings, sites: int) -> int:
    """How many of so many sites train in a round; at least one."""
    return max(1, round(settings.federation.fraction_train * sites))
