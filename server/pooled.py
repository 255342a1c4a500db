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
    def of(cls, replies: Sequence[Reply], classes: Sequence[str]) -> Self:
        """Adds up the sites' confusion counts, bootstraps and losses."""
        if not replies:
            return cls.nothing(classes)
        sums = [reply.components[COUNTS] for reply in replies]
        counts = [one["counts"] for one in sums]
        draws = auc_from_counts(sum_of([one["bootstraps"] for one in sums]))  # (B, C)
        pooled = auc_from_counts(sum_of(counts))  # (C,)
        figures = {
            "auc_pooled": macro(pooled),
            "auc_pooled_interval": macro_interval(pooled, draws),
            "auc_pooled_per_class": dict(zip(classes, pooled.tolist(), strict=True)),
            "auc_pooled_per_site": {
                reply.site: macro(auc_from_counts(one))
                for reply, one in zip(replies, counts, strict=True)
            },
        }
        temperature = best_temperature(sum_of([one["temperature_losses"] for one in sums]))
        return cls(figures, macro_draws(pooled, draws), temperature)

    @classmethod
    def nothing(cls, classes: Sequence[str]) -> Self:
        """The figures if no site sends counts of validation patients: NaN, and temperature 1."""
        figures: dict[str, Any] = {
            "auc_pooled": math.nan,
            "auc_pooled_interval": (math.nan, math.nan),
            "auc_pooled_per_class": dict.fromkeys(classes, math.nan),
            "auc_pooled_per_site": {},
        }
        return cls(figures, torch.full((1,), math.nan), 1.0)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, at least one."""
    return torch.stack(list(tensors)).sum(dim=0)
