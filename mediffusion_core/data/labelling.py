"""Which training images keep their label: stratified sets that lie within each other."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.sites import Units, positives, strata
from mediffusion_core.data.store import Store


def choose_labelled(
    store: Store, units: Units, order: Sequence[str], fraction: float
) -> NDArray[np.int64]:
    """Indices that keep their label: the units at the head of one order for all fractions.

    Args:
        store: The labels.
        units: A site's training units.
        order: Their names in the order of the seed.
        fraction: Share of the images with a label that is to keep it.
    """
    known: NDArray[np.bool_] = np.any(~np.isnan(store.labels), axis=1)  # (N,)
    with_label = {name: rows[known[rows]] for name, rows in units.items() if known[rows].any()}
    if fraction == 0 or not with_label:
        return np.empty(0, dtype=np.int64)
    order = [name for name in order if name in with_label]
    cover = _cover(store, with_label, order)
    rest = [name for name in order if name not in set(cover)]
    queue = cover + _large_later(_interleaved(store, with_label, rest), with_label, cover)

    # The end nearest to the wish, and where that is short of the cover as much of it as the
    # allowance pays for; both grow with the fraction, so the sets are nested.
    wish = fraction * sum(map(len, with_label.values()))
    ends = np.cumsum([len(with_label[name]) for name in queue])  # (G,)
    affordable = int(np.searchsorted(ends, ceil(wish) + len(store.classes), side="right"))
    nearest = int(np.argmin(np.abs(np.concatenate([[0], ends]) - wish)))
    count = min(affordable, max(nearest, len(cover)))
    return np.concatenate([np.empty(0, np.int64), *(with_label[name] for name in queue[:count])])


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


def _interleaved(store: Store, units: Units, order: Sequence[str]) -> list[str]:
    """Spreads every stratum evenly, so that each head of the list has the strata's shares."""
    place = {
        name: (index + 0.5) / len(stratum)
        for stratum in strata(store, units, order)
        for index, name in enumerate(stratum)
    }
    return sorted(order, key=lambda name: place[name])


def _large_later(order: Sequence[str], units: Units, before: Sequence[str]) -> list[str]:
    """Puts a unit back until it is at most a quarter of what stands before and with it.

    One patient of forty images would otherwise be the whole of a small labelled set, or end it.
    """
    total = sum(len(units[name]) for name in before)
    waiting: list[str] = []
    result: list[str] = []

    def fits(name: str) -> bool:
        return len(units[name]) <= max(1, total / 3)

    for name in order:
        waiting.append(name)
        while (ready := next(filter(fits, waiting), None)) is not None:
            waiting.remove(ready)
            result.append(ready)
            total += len(units[ready])
    return result + sorted(waiting, key=lambda name: len(units[name]))
