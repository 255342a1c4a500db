"""Figures over the validation units of all sites, from the noised sums that each site sends."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.evaluation.classification import macro, macro_draws, macro_interval
from mediffusion_core.evaluation.noised_validation import ValidationSums
from mediffusion_core.messaging.protocol import COUNTS
from mediffusion_core.settings import Settings
from server.messages import Reply
from server.pooled import PooledValidation, sum_of


class NoisedValidationSums:
    """Adds up the sites' answers to an evaluation of a private run, reply by reply."""

    def __init__(
        self,
        classes: Sequence[str],
        multi_label: bool,
        settings: Settings,
        round_number: int,
        known: Collection[str] | None,
    ) -> None:
        """Makes empty sums.

        Args:
            classes: Names of the classes.
            multi_label: Whether they are independent.
            settings: Of the run.
            round_number: Of the joint stage.
            known: The classes that have an area; None for those with enough units.
        """
        self._classes, self._multi_label, self._settings = classes, multi_label, settings
        self._round, self._known = round_number, known
        self._replies: dict[str, ValidationSums] = {}

    def take(self, reply: Reply) -> None:
        """Adds a site's sums."""
        self._replies[reply.site] = ValidationSums.of_arrays(reply.components[COUNTS])

    def pooled(self) -> PooledValidation:
        """The figures over all sites whose replies were taken."""
        if not self._replies:
            return PooledValidation.nothing(self._classes)
        replies = [self._replies[site] for site in sorted(self._replies)]
        total = ValidationSums(
            sum_of([one.histogram for one in replies]), sum_of([one.gains for one in replies])
        )
        own, noise = self._deviations(1), self._deviations(len(replies))
        areas = total.areas(noise, self._mask())
        seed = derive_seed(self._settings.seed, "noised validation", self._round)
        draws = total.draws(noise, areas, self._settings.evaluation.num_bootstraps, seed)  # (B, C)
        per_site = {site: macro(one.areas(own)) for site, one in sorted(self._replies.items())}
        figures = {
            "auc_pooled": macro(areas),
            "auc_pooled_interval": macro_interval(areas, draws),
            "auc_pooled_per_class": dict(zip(self._classes, areas.tolist(), strict=True)),
            "auc_pooled_per_site": per_site,
        }
        return PooledValidation(figures, macro_draws(areas, draws), total.temperature(noise))

    def _mask(self) -> Tensor | None:
        if self._known is None:
            return None
        return torch.tensor([name in self._known for name in self._classes])

    def _deviations(self, sites: int) -> ValidationSums:
        """Standard deviation of the noise in the sums of so many sites together."""
        noise = self._settings.privacy.validation_noise
        assert noise is not None
        empty = ValidationSums.empty(len(self._classes))
        one = empty.deviations(noise, self._multi_label)
        factor = sites**0.5
        return ValidationSums(one.histogram * factor, one.gains * factor)
