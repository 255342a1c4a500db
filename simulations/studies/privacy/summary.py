"""The figures of each ε over the seeds."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from mediffusion_core.evaluation.bootstrap import Estimate
from simulations.studies.privacy.table import (
    ATTACK_AUC,
    AUC,
    ECE,
    FID,
    LARGEST_BOUND,
    LARGEST_TPR,
    LOWER_BOUND,
    STAGE_EPSILON,
    TPR,
    Row,
)

MISSING = Estimate(math.nan, math.nan, math.nan, 0)


class Found(NamedTuple):
    """The largest of some figures, and its run."""

    value: float
    of: str
    """The attack or the stage."""
    epsilon: float
    seed: int


class Audit(NamedTuple):
    """Of the audits of one stage at one ε the one whose bound is the nearest to its promise."""

    stage: str
    lower_bound: float
    promised: float
    provable: float
    """The largest bound that so many canaries can prove."""


@dataclass(frozen=True)
class Point:
    """The figures of one ε. Each estimate is of the mean over its seeds."""

    epsilon: float
    runs: int
    auc: Estimate
    auc_difference: Estimate
    """AUC less that of the reference, paired by seed: the same splits and first weights."""
    ece: Estimate
    fid: Estimate
    attacks: Mapping[str, tuple[Estimate, Estimate]]
    """AUC and TPR at 1 % false positives of each attack."""
    best: Found | None
    """The largest TPR of all attacks and seeds."""
    largest_tpr: float
    """The largest TPR that the promise allows."""
    audits: Sequence[Audit]


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of the finite values with Student's 95 % interval, which one value does not have."""
    finite = [value for value in values if math.isfinite(value)]
    count = len(finite)
    if not count:
        return MISSING
    mean = statistics.fmean(finite)
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(finite) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def points_of(rows: Sequence[Row]) -> list[Point]:
    """The figures of each ε that has a finished run; the largest ε is the reference."""
    epsilons = sorted({row.epsilon for row in rows})
    return [_point(rows, epsilon, epsilons[-1]) for epsilon in epsilons]


def _point(rows: Sequence[Row], epsilon: float, reference: float) -> Point:
    own = [row for row in rows if row.epsilon == epsilon]
    aucs = _by_seed(own, AUC)
    others = _by_seed([row for row in rows if row.epsilon == reference], AUC)
    differences = [aucs[seed] - others[seed] for seed in aucs.keys() & others.keys()]
    names = dict.fromkeys(row.of for row in own if row.figure == TPR)
    tprs = [row for row in own if row.figure == TPR and math.isfinite(row.value)]
    best = max(tprs, key=lambda row: row.value, default=None)
    return Point(
        epsilon=epsilon,
        runs=len(aucs),
        auc=over_seeds(list(aucs.values())),
        auc_difference=MISSING if epsilon == reference else over_seeds(differences),
        ece=over_seeds(list(_by_seed(own, ECE).values())),
        fid=over_seeds(list(_by_seed(own, FID).values())),
        attacks={
            name: (_share(_mean(own, ATTACK_AUC, name)), _share(_mean(own, TPR, name)))
            for name in names
        },
        best=best and Found(best.value, best.of, best.epsilon, best.seed),
        largest_tpr=max(_by_seed(own, LARGEST_TPR).values(), default=math.nan),
        audits=list(_audits(own)),
    )


def _audits(rows: Sequence[Row]) -> Iterator[Audit]:
    for stage in dict.fromkeys(row.of for row in rows if row.figure == LOWER_BOUND):
        bounds = _by_seed(rows, LOWER_BOUND, stage)
        promised = _by_seed(rows, STAGE_EPSILON, stage)
        seed = max(bounds, key=lambda one: bounds[one] / promised[one])
        provable = _by_seed(rows, LARGEST_BOUND, stage)[seed]
        yield Audit(stage, bounds[seed], promised[seed], provable)


def _share(one: Estimate) -> Estimate:
    """An estimate whose interval does not leave 0 to 1."""
    low, high = np.clip([one.low, one.high], 0.0, 1.0).tolist()
    return replace(one, low=low, high=high)


def _mean(rows: Sequence[Row], figure: str, of: str) -> Estimate:
    return over_seeds(list(_by_seed(rows, figure, of).values()))


def _by_seed(rows: Sequence[Row], figure: str, of: str = "") -> dict[int, float]:
    return {row.seed: row.value for row in rows if (row.figure, row.of) == (figure, of)}
