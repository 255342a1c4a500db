"""Figures over the validation patients of all sites, from the sums that each site sends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from mediffusion_core.evaluation.calibration import best_temperature
from mediffusion_core.evaluation.classification import (
    auc_from_counts,
    macro,
    macro_draws,
    macro_interval,
)
from mediffusion_core.messaging.protocol import COUNTS
from server.messages import Reply


@dataclass(frozen=True)
class PooledValidation:
    """Validation of one model over all sites.

    Attributes:
        figures: Pooled AUC: macro, its interval, per class and per site.
        draws: Macro AUC of each bootstrap, (B,).
        temperature: That of the least summed loss.
    """

    figures: dict[str, Any]
    draws: Tensor
    temperature: float

    @classmethod
    def nothing(cls, classes: Sequence[str]) -> Self:
        """Where no site tells of its validation patients: NaN, and a temperature of 1."""
        figures: dict[str, Any] = {
            "auc_pooled": math.nan,
            "auc_pooled_interval": (math.nan, math.nan),
            "auc_pooled_per_class": dict.fromkeys(classes, math.nan),
            "auc_pooled_per_site": {},
        }
        return cls(figures, torch.full((1,), math.nan), 1.0)


class ValidationSums:
    """Adds up what the sites answer to an evaluation, reply by reply."""

    def __init__(self, classes: Sequence[str]) -> None:
        """Takes the names of the classes."""
        self._classes = classes
        self._counts: Tensor | None = None
        self._bootstraps: Tensor | None = None
        self._by_site: dict[str, tuple[float, Tensor]] = {}
        """By site its macro AUC, and its losses (K,) at the temperatures."""

    def take(self, reply: Reply) -> None:
        """Adds a site's confusion counts, bootstraps and losses."""
        sums = reply.components[COUNTS]
        auc = macro(auc_from_counts(sums["counts"]))
        self._by_site[reply.site] = auc, sums["temperature_losses"]
        self._counts = _added(self._counts, sums["counts"])
        self._bootstraps = _added(self._bootstraps, sums["bootstraps"])

    def pooled(self) -> PooledValidation:
        """The figures over all sites whose replies were taken."""
        if self._counts is None or self._bootstraps is None:
            return PooledValidation.nothing(self._classes)
        draws = auc_from_counts(self._bootstraps)  # (B, C)
        pooled = auc_from_counts(self._counts)  # (C,)
        # In one order, since a sum's last bit depends on it.
        by_site = {site: self._by_site[site] for site in sorted(self._by_site)}
        figures = {
            "auc_pooled": macro(pooled),
            "auc_pooled_interval": macro_interval(pooled, draws),
            "auc_pooled_per_class": dict(zip(self._classes, pooled.tolist(), strict=True)),
            "auc_pooled_per_site": {site: auc for site, (auc, _) in by_site.items()},
        }
        temperature = best_temperature(sum_of([losses for _, losses in by_site.values()]))
        return PooledValidation(figures, macro_draws(pooled, draws), temperature)


def _added(total: Tensor | None, counts: Tensor) -> Tensor:
    return counts.clone() if total is None else total.add_(counts)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, at least one."""
    return torch.stack(list(tensors)).sum(dim=0)
