"""Figures over the validation patients of all sites, from the sums that each site sends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
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
from server.robust_statistics import capped, median
from server.spool import Spool

CONFUSION = ("counts", "bootstraps")
"""Confusion counts of the patients, and of each bootstrap over them."""


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
        """The figures if no site sends counts of validation patients: NaN, and temperature 1."""
        figures: dict[str, Any] = {
            "auc_pooled": math.nan,
            "auc_pooled_interval": (math.nan, math.nan),
            "auc_pooled_per_class": dict.fromkeys(classes, math.nan),
            "auc_pooled_per_site": {},
        }
        return cls(figures, torch.full((1,), math.nan), 1.0)


class ValidationSums:
    """Adds up the sites' answers to an evaluation, reply by reply."""

    def __init__(self, classes: Sequence[str]) -> None:
        """Takes the names of the classes."""
        self._classes = classes
        self._sums: dict[str, Tensor] = {}
        self._auc: dict[str, float] = {}
        self._losses: dict[str, Tensor] = {}

    def take(self, reply: Reply) -> None:
        """Adds a site's confusion counts, bootstraps and losses."""
        self._note(reply)
        self._add({name: reply.components[COUNTS][name] for name in CONFUSION})

    def pooled(self) -> PooledValidation:
        """The figures over all sites whose replies were taken; to be called once."""
        if not self._sums:
            return PooledValidation.nothing(self._classes)
        pooled, draws = (auc_from_counts(self._sums[name]) for name in CONFUSION)  # (C,), (B, C)
        figures = {
            "auc_pooled": macro(pooled),
            "auc_pooled_interval": macro_interval(pooled, draws),
            "auc_pooled_per_class": dict(zip(self._classes, pooled.tolist(), strict=True)),
            "auc_pooled_per_site": dict(sorted(self._auc.items())),
        }
        # In one order, since a sum's last bit depends on it.
        losses = [self._losses[site] for site in sorted(self._losses)]
        return PooledValidation(figures, macro_draws(pooled, draws), self._temperature(losses))

    def _note(self, reply: Reply) -> None:
        sums = reply.components[COUNTS]
        self._auc[reply.site] = macro(auc_from_counts(sums["counts"]))
        self._losses[reply.site] = sums["temperature_losses"]

    def _add(self, counts: Mapping[str, Tensor]) -> None:
        for name, value in counts.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _temperature(self, losses: Sequence[Tensor]) -> float:
        """That of the least loss, of the sites' losses (K,) at the temperatures."""
        return best_temperature(sum_of(losses))


class CappedValidationSums(ValidationSums):
    """The same where f sites may be malicious.

    A receiver operating curve consists of rates among patients with a finding and of rates among
    the others. In both, a site's patients are weighted as `robust_statistics.capped` has it, so
    that f sites are less than half of either. The temperature is the median of the sites' own.
    """

    def __init__(self, classes: Sequence[str], malicious: int, folder: Path) -> None:
        """Takes the names of the classes, f, and a folder for the replies."""
        super().__init__(classes)
        self._malicious = malicious
        self._spool = Spool(folder)
        self._patients: dict[str, Tensor] = {}
        """By site, of each class without and with the finding, (C, 2)."""

    def take(self, reply: Reply) -> None:
        """Writes a site's confusion counts and bootstraps to the disk."""
        self._note(reply)
        counts = {name: reply.components[COUNTS][name] for name in CONFUSION}
        self._patients[reply.site] = counts["counts"][:, 0].sum(dim=-1)
        self._spool.write(reply.site, COUNTS, counts)

    def pooled(self) -> PooledValidation:
        """The figures over all sites whose replies were taken; to be called once."""
        for site, factors in self._factors().items():
            counts = self._spool.read(site, COUNTS)  # (..., C, T, 2, 2)
            self._add({name: value * factors[:, None, :, None] for name, value in counts.items()})
        self._spool.remove()
        return super().pooled()

    def _factors(self) -> dict[str, Tensor]:
        """By site, the weight of each of its patients without and with a finding, (C, 2)."""
        sites = sorted(self._patients)
        factors = {site: torch.zeros(self._patients[site].shape).double() for site in sites}
        for cell in product(range(len(self._classes)), range(2)):
            patients = {site: float(self._patients[site][cell]) for site in sites}
            for site, weight in capped(patients, self._malicious).items():
                factors[site][cell] = weight / max(patients[site], 1.0)
        return factors

    def _temperature(self, losses: Sequence[Tensor]) -> float:
        labelled = [one for one in losses if bool(one.max() > one.min())]
        own = [torch.tensor(best_temperature(one), dtype=torch.float64) for one in labelled]
        return float(median(own)) if own else 1.0


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, at least one."""
    return torch.stack(list(tensors)).sum(dim=0)
