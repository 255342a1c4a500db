"""The rule by which a mark is named: three tests, and a correction for the number of marks tested.

A mark of a site is used as a sign of a class if pasting it raises the class's log odds by more than
`LEAST_EFFECT`, removing it lowers them by more than that, and more of the change of counterfactuals
lies at its place than its share of the pixels. As a sign against the class pasting lowers and
removing raises them.

Each test has a one-sided p-value of a bootstrap over patients. All three must pass, so a mark's
p-value is the largest of the three (Berger 1982), doubled for the two directions. Holm's correction
(1979) is over all sites, marks and classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.evaluation.bootstrap import Estimate, estimate_mean
from mediffusion_core.evaluation.classification import multiplicities
from mediffusion_core.settings import MarkKind

LEAST_EFFECT = 1.0
"""Log odds: odds that grow by the factor 2.7."""
LEAST_CONCENTRATION = 1.0
FEWEST = 8
"""Patients that each test needs at least; with fewer a bootstrap is too sure."""
LEVEL = 0.05
BOOTSTRAPS = 10_000
"""At least; more for more tests, so that the smallest p-value can pass the correction."""


@dataclass(frozen=True)
class Sample:
    """Values of n images, nan where missing, with the patient or lesion of each."""

    values: Tensor
    groups: Sequence[str]

    def estimate(self, seed: int) -> Estimate:
        """Mean with its 95 % interval."""
        return estimate_mean(self.values, self.groups, BOOTSTRAPS, seed)

    def p_value(self, sign: int, least: float, num_bootstraps: int, seed: int) -> float:
        """Of the hypothesis that the mean, times the sign, is at most `least`; 1 of too few.

        At least 2⁻ⁿ with n patients, the smallest p-value of a sign test. With few patients all
        bootstrapped means pass the limit too often.
        """
        finite = self.values.isfinite()
        groups = [name for name, keep in zip(self.groups, finite.tolist(), strict=True) if keep]
        if len(set(groups)) < FEWEST:
            return 1.0
        weights = multiplicities(groups, num_bootstraps, seed).double()  # (m, B)
        means = (sign * self.values[finite].double() @ weights) / weights.sum(dim=0)
        drawn = (1 + int((means <= least).sum())) / (1 + num_bootstraps)
        return max(drawn, 0.5 ** len(set(groups)))


@dataclass(frozen=True)
class Evidence:
    """The three samples of one mark at one site for one class."""

    site: str
    kind: MarkKind
    label: str
    """The class."""
    pasted: Sample
    removed: Sample
    concentration: Sample


@dataclass(frozen=True)
class Decision:
    """A mark with its figures and the decision."""

    site: str
    kind: MarkKind
    label: str
    pasted: Estimate
    removed: Estimate
    concentration: Estimate
    sign: int
    """1: a sign of the class; -1: a sign against it."""
    p_value: float
    """After Holm's correction."""

    @property
    def used(self) -> bool:
        """Whether the classifier uses the mark."""
        return self.p_value < LEVEL


def decide(evidence: Sequence[Evidence], seed: int) -> list[Decision]:
    """Tests every mark; `seed` draws the bootstraps."""
    figures = [
        (one.pasted.estimate(seed), one.removed.estimate(seed), one.concentration.estimate(seed))
        for one in evidence
    ]
    signs = [-1 if removed.value < 0 else 1 for _, removed, _ in figures]
    draws = max(BOOTSTRAPS, round(8 * len(evidence) / LEVEL))
    p_values = [_p_value(one, sign, draws, seed) for one, sign in zip(evidence, signs, strict=True)]
    return [
        Decision(one.site, one.kind, one.label, *three, sign, p_value)
        for one, three, sign, p_value in zip(evidence, figures, signs, holm(p_values), strict=True)
    ]


def _p_value(one: Evidence, sign: int, draws: int, seed: int) -> float:
    largest = one.removed.p_value(sign, LEAST_EFFECT, draws, seed)
    if largest < 1:  # no other test matters if too few images have the mark
        pasted = one.pasted.p_value(sign, LEAST_EFFECT, draws, seed)
        place = one.concentration.p_value(1, LEAST_CONCENTRATION, draws, seed)
        largest = max(largest, pasted, place)
    return min(1.0, 2 * largest)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction for their number."""
    given = torch.tensor(p_values, dtype=torch.double)
    order = given.argsort()
    factors = torch.arange(len(given), 0, -1)
    stepped = (given[order] * factors).clamp(max=1).cummax(dim=0).values
    corrected: list[float] = stepped[order.argsort()].tolist()
    return corrected
