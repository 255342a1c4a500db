"""Which training images keep their label: stratified sets that lie within each other."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import ceil

import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from numpy.typing import NDArray

from mediffusion_core.data.sites import Units, positives
from mediffusion_core.data.store import Store


def choose_labelled(store: Store, units: Units, order: Sequence[str], fraction: float) -> list[str]:
    """Units that keep their labels: those at the head of one order for all fractions.

    Args:
        store: The labels.
        units: The units to choose from.
        order: Their names in the order of the seed.
        fraction: Share of the images with a label that is to keep it.
    """
    known = has_label(store)
    with_label = {name: rows[known[rows]] for name, rows in units.items() if known[rows].any()}
    if fraction == 0 or not with_label:
        return []
    order = [name for name in order if name in with_label]
    if fraction == 1:
        return order
    cover = _cover(store, with_label, order)
    rest = [name for name in order if name not in set(cover)]
    present = positives(store, with_label, rest)
    strata = np.column_stack([present, ~present.any(axis=1)])  # (G, C + 1), the last of no class
    spread = _halved(strata, np.array(rest, dtype=object))
    queue = chain(cover, _large_later(spread, with_label, cover))

    # The end nearest to the wish, and where that is short of the cover as much of it as the
    # allowance pays for; both grow with the fraction, so the sets are nested.
    wish = fraction * sum(map(len, with_label.values()))
    allowance = ceil(wish) + len(store.classes)
    taken: list[str] = []
    ends = [0]
    for name in queue:
        if ends[-1] + len(with_label[name]) > allowance:
            break
        taken.append(name)
        ends.append(ends[-1] + len(with_label[name]))
    nearest = int(np.argmin(np.abs(np.array(ends) - wish)))
    return taken[: max(nearest, len(cover))]


def has_label(store: Store) -> NDArray[np.bool_]:
    """Which images have a label of at least one class, (N,)."""
    known: NDArray[np.bool_] = np.any(~np.isnan(store.labels), axis=1)
    return known


def _cover(store: Store, units: Units, order: Sequence[str]) -> list[str]:
    """At most one unit a class so that each class is in one; small ones are preferred."""
    present = positives(store, units, order)  # (G, C)
    cover: list[str] = []
    covered: NDArray[np.bool_] = np.zeros(len(store.classes), dtype=np.bool_)
    for index in np.argsort(present.sum(axis=0), kind="stable"):
        holders = np.flatnonzero(present[:, index])
        if not covered[index] and holders.size:
            chosen = min(holders.tolist(), key=lambda holder: len(units[order[holder]]))
            cover.append(order[chosen])
            covered = covered | present[chosen]
    return cover


def _halved(strata: NDArray[np.bool_], names: NDArray[np.object_]) -> Iterator[str]:
    """Orders units so that every head of the list holds each stratum in its share.

    The units are split into stratified halves, these again, and so on, by iterative
    stratification (Sechidis et al., ECML PKDD 2011). A half is split only once it is reached.

    Args:
        strata: Which strata each unit belongs to, (G, S) with S > 1.
        names: The units' names, (G,), in the order of the seed, which alone decides ties.
    """
    if len(names) <= 2:
        yield from names
        return
    halves = MultilabelStratifiedKFold(2, shuffle=True, random_state=0).split(strata, strata)
    for half in next(halves):
        yield from _halved(strata[half], names[half])


def _large_later(order: Iterable[str], units: Units, before: Sequence[str]) -> Iterator[str]:
    """Puts a unit back until it is at most a quarter of what stands before and with it.

    One patient of forty images would otherwise be the whole of a small labelled set, or end it.
    """
    total = sum(len(units[name]) for name in before)
    waiting: list[str] = []

    def fits(name: str) -> bool:
        return len(units[name]) <= max(1, total / 3)

    for name in order:
        waiting.append(name)
        while (ready := next(filter(fits, waiting), None)) is not None:
            waiting.remove(ready)
            total += len(units[ready])
            yield ready
    yield from sorted(waiting, key=lambda name: len(units[name]))
