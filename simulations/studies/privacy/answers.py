"""Sentences of the page: the runs that were made, and what their figures say."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.evaluation.membership_inference import FALSE_POSITIVE_RATE
from simulations.studies.audit.study import broken_promises
from simulations.studies.privacy.cells import NO_NOISE, epsilon_text
from simulations.studies.privacy.plan import Plan, Work
from simulations.studies.privacy.summary import Found, Point
from simulations.studies.privacy.table import TPR, Row
from simulations.studies.sentences import NOT_SHOWN, is_shown, written

Figures = Mapping[str, Any]


def was_run(plan: Plan, finished: int) -> str:
    """The runs, and what an infinite ε means."""
    numbers = listed([epsilon_text(one) for one in plan.epsilons])
    text = f"{finished} of {len(plan.epsilons) * plan.seeds} runs have finished: ε of {numbers}, "
    text += f"{plan.seeds} {'seed' if plan.seeds == 1 else 'seeds'} each"
    if math.isinf(plan.epsilons[-1]):
        text += (
            f"; ∞ is the same network, steps, sampling and clipping with σ = {NO_NOISE:g}, which is"
            " no noise to speak of"
        )
    return f"{text}."


def utility(points: Sequence[Point]) -> list[str]:
    """AUC of the reference, and of each other ε less that."""
    if not points:
        return []
    *others, reference = points
    where = _at(reference.epsilon)
    sentences = [f"{where} the macro AUC is {written(reference.auc, '.3f')}."]
    sentences += [
        f"{_at(point.epsilon)} it is {_less(point.auc_difference, where.lower())}."
        for point in others
        if point.auc_difference.count
    ]
    return sentences


def _at(epsilon: float) -> str:
    return "Without noise" if math.isinf(epsilon) else f"At ε = {epsilon_text(epsilon)}"


def _less(difference: Estimate, reference: str) -> str:
    direction = "lower" if difference.value < 0 else "higher"
    text = f"{abs(difference.value):.3f} {direction} than {reference}"
    if math.isnan(difference.low):
        return text
    ends = f"{difference.low:+.3f} to {difference.high:+.3f}"
    if not is_shown(difference):
        return f"{text}, but {NOT_SHOWN} (difference {ends})"
    return f"{text} (difference {ends})"


def leakage(points: Sequence[Point]) -> list[str]:
    """The largest TPR of any attack on private runs, and on runs without noise."""
    private = [one.best for one in points if one.best and math.isfinite(one.epsilon)]
    allowed = {one.epsilon: one.largest_tpr for one in points}
    sentences = []
    if private:
        most = max(private)
        sentences.append(
            f"On private runs no attack finds more than {most.value:.1%} of the members at "
            f"{FALSE_POSITIVE_RATE:.0%} false positives ({_where(most)}; the promise allows "
            f"{allowed[most.epsilon]:.1%})."
        )
    bare = [one.best for one in points if one.best and math.isinf(one.epsilon)]
    if bare:
        sentences.append(
            f"Without noise the best attack finds {bare[0].value:.1%} ({bare[0].of}, seed "
            f"{bare[0].seed})."
        )
    return sentences


def _where(found: Found) -> str:
    return f"{found.of} at ε = {epsilon_text(found.epsilon)}, seed {found.seed}"


def audited(work: Work, points: Sequence[Point]) -> list[str]:
    """Whether each audited lower bound is below its promise."""
    audits = [
        figures for key, figures in _audits(work) if math.isfinite(key[0]) and figures["stages"]
    ]
    sentences = []
    broken = sum(bool(broken_promises(one)) for one in audits)
    if broken:
        sentences.append(
            f"The audit's lower bound is ABOVE the promised ε in {broken} of {len(audits)} private "
            "runs."
        )
    elif audits:
        close = max(
            (audit for point in points if math.isfinite(point.epsilon) for audit in point.audits),
            key=lambda audit: audit.lower_bound / audit.promised,
        )
        runs = "run" if len(audits) == 1 else "runs"
        sentences.append(
            f"The audit's lower bound is below the promised ε in {len(audits)} of {len(audits)} "
            f"private {runs}; the nearest is {close.lower_bound:.2f} where {close.promised:.2f} is "
            "promised."
        )
    for point in points:
        if math.isinf(point.epsilon) and point.audits:
            most = max(point.audits, key=lambda audit: audit.lower_bound)
            sentences.append(
                f"Without noise the audit proves an ε of at least {most.lower_bound:.2f}; its "
                f"canaries can prove {most.provable:.2f} at most."
            )
    return sentences


def alarms(work: Work) -> list[str]:
    """A line on each audited lower bound above its promise."""
    return [
        f"{work.runs[key].title}: {fault}"
        for key, figures in _audits(work)
        for fault in broken_promises(figures)
    ]


def suspicions(rows: Sequence[Row], points: Sequence[Point]) -> list[str]:
    """A line on each attack whose whole interval is above the promise; chance can do so too."""
    allowed = {one.epsilon: one.largest_tpr for one in points}
    return [
        f"ε = {epsilon_text(row.epsilon)}, seed {row.seed}: {row.of} finds {row.value:.1%} "
        f"({row.low:.1%} to {row.high:.1%}) of the members, and the promise allows "
        f"{allowed[row.epsilon]:.1%}"
        for row in rows
        if row.figure == TPR and row.low > allowed[row.epsilon]
    ]


def _audits(work: Work) -> Iterator[tuple[tuple[float, int], Figures]]:
    for key in work.finished():
        if figures := work.measure(key, "audit").measured(work.study):
            yield key, figures


def listed(parts: Sequence[str]) -> str:
    """Parts with commas and a last `and`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
