"""Figures of one model from the sums that the sites send, and the difference of two models."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mediffusion_core.evaluation.calibration import calibration_from_sums
from mediffusion_core.evaluation.classification import (
    auc_from_counts,
    interval,
    macro,
    macro_draws,
    macro_interval,
)
from mediffusion_core.evaluation.delong import delong_interval
from mediffusion_core.evaluation.subgroups import SUBGROUPS
from mediffusion_core.messaging.protocol import COUNTS
from server.messages import Reply

Figures = dict[str, Any]


class ModelSums:
    """Adds up the sites' answers about one model, reply by reply."""

    def __init__(self, classes: Sequence[str], temperature: float) -> None:
        """Takes the names of the classes, and the model's temperature."""
        self._classes = classes
        self._temperature = temperature
        self._sums: dict[str, Tensor] = {}
        self._sites: dict[str, Figures] = {}
        self._subgroup_sites = [0] * len(SUBGROUPS)

    def take(self, reply: Reply) -> None:
        """Adds a site's sums, and keeps the site's own figures."""
        sums = reply.components[COUNTS]
        areas = auc_from_counts(sums["counts"])
        self._sites[reply.site] = {
            "auc": macro(areas),
            "auc_per_class": self._named(areas.tolist()),
            "images": _images(sums["counts"]),
        }
        for number, counts in enumerate(sums["subgroups"]):
            self._subgroup_sites[number] += bool(counts.any())
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    @property
    def sites(self) -> list[str]:
        """The sites whose sums were taken, in order."""
        return sorted(self._sites)

    def areas(self) -> tuple[Tensor, Tensor]:
        """Pooled areas (C,), and those of each bootstrap (B, C)."""
        return auc_from_counts(self._sums["counts"]), auc_from_counts(self._sums["bootstraps"])

    def figures(self) -> Figures:
        """All figures over the sites whose sums were taken, at least one."""
        areas, draws = self.areas()
        return {
            "auc": macro(areas),
            "auc_interval": macro_interval(areas, draws),
            "auc_per_class": self._named(areas.tolist()),
            "auc_interval_per_class": self._named([interval(one) for one in draws.T]),
            "images": _images(self._sums["counts"]),
            "images_per_class": self._named(_with_and_without(self._sums["counts"])),
            "calibration": self._calibration(),
            "subgroups": self._subgroups(),
            "sites": dict(sorted(self._sites.items())),
        }

    def _named(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._classes, values, strict=True))

    def _calibration(self) -> Figures:
        sums = zip(self._sums["reliability"], self._sums["squares"], strict=True)
        (error, brier), (own_error, own_brier) = (calibration_from_sums(*one) for one in sums)
        return {
            "error": own_error,
            "error_uncalibrated": error,
            "brier": own_brier,
            "brier_uncalibrated": brier,
            "temperature": self._temperature,
        }

    def _subgroups(self) -> dict[str, Figures]:
        """By attribute and subgroup; one that every site lacks or suppresses has no images."""
        found: dict[str, Figures] = {name: {} for name, _ in SUBGROUPS}
        for number, (name, subgroup) in enumerate(SUBGROUPS):
            counts = self._sums["subgroups"][number]
            areas = auc_from_counts(counts)
            found[name][subgroup] = {
                "auc": macro(areas),
                "auc_per_class": self._named(areas.tolist()),
                "auc_interval_per_class": self._named(delong_interval(counts).tolist()),
                "images": _images(counts),
                "sites": self._subgroup_sites[number],
            }
        return found


def difference(first: ModelSums, second: ModelSums, classes: Sequence[str]) -> Figures:
    """The first model's AUC minus the second's, by paired bootstraps.

    Each bootstrap of a site draws the same patients for both models, so its two areas are of the
    same patients.

    Args:
        first: Sums of a model.
        second: Sums of another model over the same sites.
        classes: Names of the classes.

    Returns:
        The macro difference, its 95 % interval and two-sided p, and each class's difference and
        interval.

    Raises:
        ValueError: if the sums are not of the same sites.
    """
    if first.sites != second.sites:
        raise ValueError(f"sums of {first.sites} and {second.sites} are not paired")
    (ours, our_draws), (theirs, their_draws) = first.areas(), second.areas()
    per_class, draws = ours - theirs, our_draws - their_draws
    macro_difference = macro_draws(ours, our_draws) - macro_draws(theirs, their_draws)
    finite = macro_difference[macro_difference.isfinite()]
    return {
        "auc": macro(ours) - macro(theirs),
        "auc_interval": interval(finite),
        "p": _two_sided(finite),
        "auc_per_class": dict(zip(classes, per_class.tolist(), strict=True)),
        "auc_interval_per_class": {
            name: interval(one) for name, one in zip(classes, draws.T, strict=True)
        },
    }


def _two_sided(differences: Tensor) -> float:
    """Twice the smaller share of bootstraps on one side of 0, the estimate counted as one."""
    if not len(differences):
        return math.nan
    shares = [
        (float(side.sum()) + 1) / (len(differences) + 1)
        for side in (differences <= 0, differences >= 0)
    ]
    return min(1.0, 2 * min(shares))


def _images(counts: Tensor) -> int:
    """Images with a known label, of the class that has most."""
    return int(counts[:, 0].sum(dim=(1, 2)).max())


def _with_and_without(counts: Tensor) -> list[Mapping[str, int]]:
    """By class, the images with it and without it."""
    totals = counts[:, 0].sum(dim=-1)  # (C, 2)
    return [{"with": int(one[1]), "without": int(one[0])} for one in totals]
