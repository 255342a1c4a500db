"""Which training images keep their label: stratified sets that lie within each other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import ceil

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.partitioning.partitioners import Units, positives


def choose_labelled(
    labels: NDArray[np.float32], units: Units, order: Sequence[str], fraction: float
) -> list[str]:
    """Units that keep their labels: those at the head of one order for all fractions.

    Args:
        labels: Labels that the site may use, (N, C), NaN where one is missing.
        units: The units to choose from.
        order: Their names in the order of the seed.
        fraction: Share of the images with a label that is to keep it.
    """
    known = has_label(labels)
    sizes = {name: int(known[units[name]].sum()) for name in order}
    order = [name for name in order if sizes[name]]
    if fraction == 0 or fraction == 1:
        return order if fraction else []
    present = positives(labels, units, order)  # (G, C)
    cover = _cover(present, [sizes[name] for name in order])
    rest = np.setdiff1d(np.arange(len(order)), cover)
    strata = np.column_stack([present, ~present.any(axis=1)])  # (G, C + 1), the last of no class
    first = [order[position] for position in cover]
    spread = (order[position] for position in _halved(strata, rest))
    queue = chain(first, _large_later(spread, sizes, first))

    # The number of units whose labelled images come nearest to the target. If that is less than
    # the cover, as much of the cover as the allowance has room for. Both grow with the fraction,
    # so the sets are nested.
    target = fraction * sum(sizes.values())
    allowance = ceil(target) + labels.shape[1]
    taken: list[str] = []
    ends = [0]
    for name in queue:
        if ends[-1] + sizes[name] > allowance:
            break
        taken.append(name)
        ends.append(ends[-1] + sizes[name])
    nearest = int(np.argmin(np.abs(np.array(ends) - target)))
    return taken[: max(nearest, len(cover))]


def has_label(labels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which images (N, C) have a label of at least one class, (N,)."""
    known: NDArray[np.bool_] = np.any(~np.isnan(labels), axis=1)
    return known


def _cover(present: NDArray[np.bool_], sizes: Sequence[int]) -> list[int]:
    """At most one unit a class so that each class is in one; small ones are preferred.

    A unit of more images than there are classes is none of them: it could be more than a small
    labelled set may hold, and would leave all the others out.

    Args:
        present: Which classes occur in each unit, (G, C).
        sizes: How many images each unit has.

    Returns:
        Positions of the units.
    """
    cover: list[int] = []
    covered: NDArray[np.bool_] = np.zeros(present.shape[1], dtype=np.bool_)
    small = np.array(sizes) <= present.shape[1]
    for index in np.argsort(present.sum(axis=0), kind="stable"):
        holders = np.flatnonzero(present[:, index] & small)
        if not covered[index] and holders.size:
            chosen = min(holders.tolist(), key=sizes.__getitem__)
            cover.append(chosen)
            covered = covered | present[chosen]
    return cover


def _halved(strata: NDArray[np.bool_], among: NDArray[np.int64]) -> Iterator[int]:
    """Orders units so that every head of the list holds each stratum in its share.

    The units are split into stratified halves, these again, and so on, by iterative
    stratification (Sechidis et al., ECML PKDD 2011). A half is split only once it is reached.

    Args:
        strata: Which strata each of all units belongs to, (G, S) with S > 1.
        among: Positions of the units to order; their order decides ties.
    """
    if len(among) <= 2:
        yield from among.tolist()
        return
    # Imported here since it takes a second, which processes that only decode would all wait for.
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    halver = MultilabelStratifiedKFold(2, shuffle=True, random_state=0)
    for half in next(halver.split(strata[among], strata[among])):
        yield from _halved(strata, among[half])


def _large_later(
    order: Iterable[str], sizes: Mapping[str, int], before: Sequence[str]
) -> Iterator[str]:
    """Puts a unit back until it is at most a quarter of the images up to and including it.

    One patient of forty images would otherwise be the whole of a small labelled set, or end it.
    """
    total = sum(sizes[name] for name in before)
    waiting: list[str] = []

    def fits(name: str) -> bool:
        return sizes[name] <= max(1, total / 3)

    for name in order:
        waiting.append(name)
        while (ready := next(filter(fits, waiting), None)) is not None:
            waiting.remove(ready)
            total += sizes[ready]
            yield ready
    yield from sorted(waiting, key=sizes.__getitem__)
