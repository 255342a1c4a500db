"""Who holds which images, which of them train, and which of those keep their label.

Groups (patients, lesions) are dealt whole. Their order comes from a hash of seed, site and group,
so it depends neither on the order of the store nor on which other groups there are.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.store import Store
from mediffusion_core.errors import UserError
from mediffusion_core.settings import DataSettings

Groups = dict[str, NDArray[np.int64]]
"""Name of a group to the indices of its images."""


@dataclass(frozen=True)
class Shard:
    """One site's images, as sorted indices into the store.

    Attributes:
        site: the site's name.
        train: images to train on.
        validation: images on which models are chosen.
        test: images of the public test set; no site trains on them.
        labelled: (len(train),), which training images keep their label.
        validation_labelled: whether the validation images keep theirs.
    """

    site: str
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    validation_labelled: bool


def partition(store: Store, settings: DataSettings, num_sites: int, seed: int) -> tuple[Shard, ...]:
    """Deals the groups of a store to sites and, at each site, to splits and labels.

    Splits and labelled sets are stratified by each group's rarest class. At one seed the
    labelled set of a smaller fraction is part of that of a larger one. Of n training images with
    a label at most ceil(fraction · n) + C are labelled (C classes); that many only where a
    class would have no labelled group otherwise, or where one group is large.

    Args:
        store: the prepared images.
        settings: kind of partition, fractions of splits and labels.
        num_sites: how many sites there are to be.
        seed: the run's seed.

    Returns:
        One shard a site, in the order of their names for natural sites.

    Raises:
        UserError: no natural sites or another number of them; too few groups; an unknown site
            in `data.labelled_fraction_by_site`.
    """
    sites = (
        _natural_sites(store, num_sites)
        if settings.partition == "natural"
        else _uniform_sites(store, num_sites, seed)
    )
    for site in settings.labelled_fraction_by_site:
        if site not in sites:
            raise UserError(
                f"data.labelled_fraction_by_site names {site!r}, allowed are {', '.join(sites)}"
            )
    return tuple(_shard(store, settings, site, members, seed) for site, members in sites.items())


def _natural_sites(store: Store, num_sites: int) -> dict[str, Groups]:
    if store.centres is None:
        raise UserError(
            "data.partition=natural: this data names no centres, use data.partition=uniform"
        )
    names = sorted(set(store.centres))
    if len(names) != num_sites:
        raise UserError(
            f"federation.num_sites is {num_sites} but the data has {len(names)} centres: "
            f"{', '.join(names)}"
        )
    centres = np.array(store.centres)
    return {name: _groups(store, np.flatnonzero(centres == name)) for name in names}


def _uniform_sites(store: Store, num_sites: int, seed: int) -> dict[str, Groups]:
    groups = _groups(store, np.arange(len(store.groups)))
    if len(groups) < num_sites:
        raise UserError(
            f"federation.num_sites is {num_sites} but the data has only {len(groups)} groups"
        )
    order = _shuffled(groups, seed, "sites")
    return {
        f"site-{site}": {name: groups[name] for name in order[site::num_sites]}
        for site in range(num_sites)
    }


def _groups(store: Store, indices: NDArray[np.int64]) -> Groups:
    members: dict[str, list[int]] = defaultdict(list)
    for index in indices.tolist():
        members[store.groups[index]].append(index)
    return {name: np.array(rows, dtype=np.int64) for name, rows in members.items()}


def _shuffled(names: Iterable[str], *purpose: object) -> list[str]:
    prefix = "|".join(map(str, purpose))
    return sorted(names, key=lambda name: hashlib.sha256(f"{prefix}|{name}".encode()).digest())


def _shard(store: Store, settings: DataSettings, site: str, groups: Groups, seed: int) -> Shard:
    fractions = {
        "train": 1 - settings.test_fraction - settings.validation_fraction,
        "test": settings.test_fraction,
        "validation": settings.validation_fraction,
    }
    order = [
        name
        for stratum in _strata(store, groups, _shuffled(groups, seed, site, "splits"))
        for name in stratum
    ]
    splits = _deal(order, groups, fractions)
    for split, names in splits.items():
        if not names:
            raise UserError(
                f"site {site} has {len(groups)} groups (patients or lesions), too few for "
                f"a {split} split of {fractions[split]:.3g}"
            )
    train, validation, test = (
        np.sort(np.concatenate([groups[name] for name in splits[split]]))
        for split in ("train", "validation", "test")
    )
    fraction = settings.labelled_fraction_by_site.get(site, settings.labelled_fraction)
    chosen = _labelled(
        store,
        {name: groups[name] for name in splits["train"]},
        _shuffled(splits["train"], seed, site, "labels"),
        fraction,
    )
    return Shard(
        site=site,
        train=train,
        validation=validation,
        test=test,
        labelled=np.isin(train, chosen),
        validation_labelled=fraction > 0,
    )


def _positives(store: Store, groups: Groups, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which classes occur in each group, (len(names), C); a missing label is no class."""
    present = store.labels == 1  # (N, C)
    rows = [present[groups[name]].any(axis=0) for name in names]
    return np.array(rows, dtype=np.bool_).reshape(len(names), len(store.classes))


def _strata(store: Store, groups: Groups, order: Sequence[str]) -> list[list[str]]:
    """Groups by their rarest class, the rarest first and those of no class last."""
    positives = _positives(store, groups, order)
    counts = positives.sum(axis=0)  # (C,)
    by_rarity = np.argsort(counts, kind="stable")
    strata: list[list[str]] = [[] for _ in range(len(by_rarity) + 1)]
    for name, row in zip(order, positives[:, by_rarity], strict=True):
        strata[int(row.argmax()) if row.any() else -1].append(name)
    return [stratum for stratum in strata if stratum]


def _deal(
    order: Sequence[str], groups: Groups, fractions: dict[str, float]
) -> dict[str, list[str]]:
    """Each group to the split that is furthest behind its share of the images so far.

    Every run of neighbours, and so every stratum, is shared out in these fractions. A split
    ends at most 4/3 of the largest group away from its share.
    """
    behind = dict.fromkeys(fractions, 0.0)
    splits: dict[str, list[str]] = {split: [] for split in fractions}
    for name in order:
        size = len(groups[name])
        for split, fraction in fractions.items():
            behind[split] += fraction * size
        furthest = max(behind, key=lambda split: behind[split])
        behind[furthest] -= size
        splits[furthest].append(name)
    return splits


def _labelled(
    store: Store, groups: Groups, order: Sequence[str], fraction: float
) -> NDArray[np.int64]:
    """Indices that keep their label: the groups at the head of one order for all fractions."""
    known: NDArray[np.bool_] = np.any(~np.isnan(store.labels), axis=1)  # (N,)
    with_label = {name: rows[known[rows]] for name, rows in groups.items() if known[rows].any()}
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


def _cover(store: Store, groups: Groups, order: Sequence[str]) -> list[str]:
    """At most one group a class so that each class is in one; small groups are preferred."""
    positives = _positives(store, groups, order)
    cover: list[str] = []
    covered: NDArray[np.bool_] = np.zeros(len(store.classes), dtype=np.bool_)
    for index in np.argsort(positives.sum(axis=0), kind="stable"):
        holders = np.flatnonzero(positives[:, index])
        if not covered[index] and holders.size:
            chosen = min(holders.tolist(), key=lambda holder: len(groups[order[holder]]))
            cover.append(order[chosen])
            covered = covered | positives[chosen]
    return cover


def _interleaved(store: Store, groups: Groups, order: Sequence[str]) -> list[str]:
    """Spreads every stratum evenly, so that each head of the list has the strata's shares."""
    place = {
        name: (index + 0.5) / len(stratum)
        for stratum in _strata(store, groups, order)
        for index, name in enumerate(stratum)
    }
    return sorted(order, key=lambda name: place[name])


def _large_later(order: Sequence[str], groups: Groups, before: Sequence[str]) -> list[str]:
    """Puts a group back until it is at most a quarter of what stands before and with it.

    One patient of forty images would otherwise be the whole of a small labelled set, or end it.
    """
    total = sum(len(groups[name]) for name in before)
    waiting: list[str] = []
    result: list[str] = []

    def fits(name: str) -> bool:
        return len(groups[name]) <= max(1, total / 3)

    for name in order:
        waiting.append(name)
        while (ready := next(filter(fits, waiting), None)) is not None:
            waiting.remove(ready)
            result.append(ready)
            total += len(groups[ready])
    return result + sorted(waiting, key=lambda name: len(groups[name]))
