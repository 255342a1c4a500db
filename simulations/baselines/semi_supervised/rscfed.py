"""RSCFed: consensus of means over random subsets of the sites (arXiv 2203.13993)."""

import math
from collections.abc import Sequence

import torch

from mediffusion_core.common.hashing import derive_seed
from server.strategy.aggregation import weighted_mean
from simulations.baselines.semi_supervised.server import Server, StateDict, Update
from simulations.baselines.semi_supervised.settings import RSCFedSettings


class ConsensusServer(Server):
    """The mean of sub-consensus models, each of random sites, reweighted by their distance."""

    def __init__(
        self, settings: RSCFedSettings, labelled: Sequence[bool], rounds: int, seed: int
    ) -> None:
        """Takes the settings, whether each site has labels, and what draws the subsets."""
        super().__init__(len(labelled))
        self._settings = settings
        self._labelled = labelled
        self._warm_up = settings.warm_up * rounds
        self._seed = seed

    def groups(self, round_number: int) -> list[list[int]]:
        """Random subsets; one mean over all sites while labels alone train."""
        if round_number - 1 < self._warm_up:
            return super().groups(round_number)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "subsets", round_number))
        size = max(1, math.ceil(self._settings.subset_share * self._num_sites))
        return [
            sorted(torch.randperm(self._num_sites, generator=generator)[:size].tolist())
            for _ in range(self._settings.subsets)
        ]

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """Images times exp(-β d / n) times the weight of labelled sites.

        d is the distance to the mean by images, and d / n in units of its mean over the subset.
        """
        images = [update.weight for update in updates]
        if sum(weight > 0 for weight in images) < 2:
            return images
        mean = weighted_mean([update.state for update in updates], images)
        ratios = [
            distance(update.state, mean) / update.weight if update.weight else 0.0
            for update in updates
        ]
        unit = sum(ratios) / sum(weight > 0 for weight in images)
        return [
            update.weight
            * math.exp(-self._settings.distance_scale * ratio / unit if unit else 0.0)
            * (self._settings.labelled_weight if self._labelled[update.site] else 1.0)
            for update, ratio in zip(updates, ratios, strict=True)
        ]


def distance(first: StateDict, second: StateDict) -> float:
    """Sum of the Euclidean distances of all parameters."""
    return sum(float((first[name] - second[name]).float().norm()) for name in first)
