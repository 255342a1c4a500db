"""From the sites' replies of a round to the next global weights, component by component."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mediffusion_core.common.hash_chain import Tip
from mediffusion_core.settings import Settings
from server.state import RunState
from server.strategy.aggregation import moving_average
from server.strategy.client_level import ClientLevelPrivacy
from server.strategy.gathering import Aggregated, Gathering, MeanOfReplies
from server.strategy.robust import RobustAggregator, common_control
from server.strategy.scaffold import Nested, corrections
from server.strategy.server_optimizers import by_component, server_step, step_by

StateDict = Mapping[str, Tensor]

SPOOL = "replies"
"""In the run's folder, during a round whose aggregation needs all replies."""


class Strategy:
    """Aggregation, the server's optimizers and the moving average of one run."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Takes the run's settings and folder."""
        federation = settings.federation
        self._federation, self._spool = federation, folder / SPOOL
        self._optimizers = by_component(federation.server)
        self._client_level = None
        if federation.client_level.enabled:
            sites = federation.asked_of(settings.num_participants)
            self._client_level = ClientLevelPrivacy(federation.client_level, sites, folder)

    def gather(
        self, stage: str, round_number: int, names: Collection[str], state: RunState
    ) -> Gathering:
        """An object that takes the replies of a round.

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
        if self._federation.num_malicious_sites:
            sent = {name: state.weights[name] for name in names}
            return Gathering(RobustAggregator(self._federation, sent, self._spool))
        return Gathering(MeanOfReplies(names, self._federation.weighting))

    def step(self, gathered: Gathering, state: RunState) -> Aggregated:
        """Steps to the aggregate of the replies. A component that no site trained stays as it is.

        Args:
            gathered: All replies of the round.
            state: Of the run; weights, optimizer memory and control variates are replaced.
        """
        aggregated = gathered.aggregated()
        for component, mean in aggregated.components.items():
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
        state.controls = gathered.remembered(state.controls, aggregated)
        return aggregated

    def step_down(self, component: str, gradient: StateDict, state: RunState) -> None:
        """Steps along the negative gradient of a component, in the place of the sites' change."""
        state.weights[component], state.optimizer_memory[component] = step_by(
            self._optimizers[component],
            state.weights[component],
            {name: -value for name, value in gradient.items()},
            state.optimizer_memory.get(component, {}),
        )

    def corrections(self, state: RunState, sites: Collection[str]) -> Nested:
        """SCAFFOLD's corrections for the sites that train next, by site; see `scaffold`."""
        return corrections(state.controls, sites, partial(common_control, self._federation))

    def average(self, state: RunState, round_number: int) -> None:
        """Moves the averages of UNet and head towards the weights after a joint round."""
        for name, average in state.averages.items():
            state.averages[name] = moving_average(
                average, state.weights[name], self._federation.ema_decay, round_number
            )

    def noised_means(self) -> Tip | None:
        """The tip of the record of noised means; None without client-level privacy."""
        return self._client_level.tip() if self._client_level else None

    def must_extend(self, noised_means: Tip | None) -> None:
        """Refuses to continue a run whose record of noised means does not contain a tip.

        Raises:
            UserError: if it has fewer than the checkpoint, or others.
        """
        if self._client_level and noised_means:
            self._client_level.must_extend(noised_means)

    def spent(self) -> dict[str, Any] | None:
        """The cost of client-level privacy so far; None without it."""
        return self._client_level.spent() if self._client_level else None
