"""Partitioners, by name: each divides the patients of a data set among sites.

A partitioner takes the units that may not be separated, and gives every one of them to one site.
Their order comes from hashes and the shares from the run's seed, so nothing depends on the store's
order.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.store.prepared import Store
from mediffusion_core.settings import DataSettings

Units = dict[str, NDArray[np.int64]]
"""Name of a unit, a group of images on one site, to the indices of its images."""

FEWEST = 10
"""Units a site must hold after a skewed draw, as in NIID-Bench (arXiv 2102.02079)."""
_DRAWS = 200


def divide(store: Store, settings: DataSettings, num_sites: int, seed: int) -> dict[str, Units]:
    """The sites of a run, by name, with what each holds.

    Raises:
        UserError: no natural centres or another number of them, or too few units for the sites.
    """
    units = units_of(store)
    if settings.partition == "natural":
        return natural_sites(store, units, num_sites)
    if len(units) < num_sites:
        raise UserError(
            f"federation.num_sites is {num_sites} but the data has only {len(units)} groups"
        )
    dealt = _WAYS[settings.partition](store, settings, units, num_sites, seed)
    return {
        f"site-{site}": {name: units[name] for name in names} for site, names in enumerate(dealt)
    }


def known_findings(settings: DataSettings, store: Store, site: int) -> NDArray[np.bool_]:
    """Which findings a site labels, (C,): all, or with `one_finding` one, in turn.

    Raises:
        UserError: `one_finding` where classes exclude each other: to know one is to know all.
    """
    if settings.partition != "one_finding":
        return np.ones(len(store.classes), dtype=np.bool_)
    if not store.multi_label:
        raise UserError(
            "data.partition=one_finding needs data with several findings an image; "
            "where classes exclude each other use data.partition=dirichlet"
        )
    known: NDArray[np.bool_] = np.arange(len(store.classes)) == site % len(store.classes)
    return known


def units_of(store: Store) -> Units:
    """The store's units, each named by the first of its patients or lesions."""
    order = np.argsort(store.units, kind="stable")
    ends = np.flatnonzero(np.diff(store.units[order])) + 1
    return {
        min(store.groups[row] for row in rows.tolist()): np.sort(rows)
        for rows in np.split(order.astype(np.int64), ends)
        if len(rows)
    }


def shuffled(names: Iterable[str], *purpose: object) -> list[str]:
    """Names in an order that depends on nothing but the purpose and each name."""
    prefix = "|".join(map(str, purpose))
    return sorted(names, key=lambda name: hashlib.sha256(f"{prefix}|{name}".encode()).digest())


def generator_for(*purpose: object) -> np.random.Generator:
    """A generator that depends on nothing but the purpose, the run's seed first."""
    digest = hashlib.sha256("|".join(map(str, purpose)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def positives(labels: NDArray[np.float32], units: Units, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which classes of the labels (N, C) occur in each unit, (G, C); a missing label is none."""
    present = np.asarray(labels) == 1  # (N, C)
    rows = [present[units[name]].any(axis=0) for name in names]
    return np.array(rows, dtype=np.bool_).reshape(len(names), labels.shape[1])


def strata(store: Store, units: Units, order: Sequence[str]) -> list[list[str]]:
    """Units by their rarest class, the rarest first and those of no class last."""
    present = positives(store.labels, units, order)
    by_rarity = np.argsort(present.sum(axis=0), kind="stable")
    found: list[list[str]] = [[] for _ in range(len(by_rarity) + 1)]
    for name, row in zip(order, present[:, by_rarity], strict=True):
        found[int(row.argmax()) if row.any() else -1].append(name)
    return [stratum for stratum in found if stratum]


def natural_sites(store: Store, units: Units, num_sites: int) -> dict[str, Units]:
    """The centres of the data; a unit that stands in several goes to the one with most of it.

    Raises:
        UserError: if the data names no centres, or another number of them.
    """
    if store.centres is None:
        raise UserError(
            "data.partition=natural: this data names no centres, use data.partition=uniform"
        )
    centres = list(store.centres)
    names = sorted(set(centres))
    if len(names) != num_sites:
        raise UserError(
            f"federation.num_sites is {num_sites} but the data has {len(names)} centres: "
            f"{', '.join(names)}"
        )
    sites: dict[str, Units] = {name: {} for name in names}
    for unit, rows in units.items():
        votes = Counter(centres[row] for row in rows.tolist())
        sites[min(votes, key=lambda centre: (-votes[centre], centre))][unit] = rows
    return sites


def _uniform(
    store: Store, settings: DataSettings, units: Units, num_sites: int, seed: int
) -> list[list[str]]:
    """Units at random, equally many a site."""
    order = shuffled(units, seed, "sites")
    return [order[site::num_sites] for site in range(num_sites)]


def _dirichlet(
    store: Store, settings: DataSettings, units: Units, num_sites: int, seed: int
) -> list[list[str]]:
    """Label skew: each class's units in shares drawn from Dir(α) (arXiv 1909.06335, section 3)."""
    classes = strata(store, units, shuffled(units, seed, "sites"))

    def draw(generator: np.random.Generator) -> list[list[str]]:
        sites: list[list[str]] = [[] for _ in range(num_sites)]
        for members in classes:
            shares = generator.dirichlet(np.full(num_sites, settings.partition_alpha))
            for site, part in zip(sites, _cut(members, shares), strict=True):
                site += part
        return sites

    return _until_filled(draw, units, settings, num_sites, seed)


def _quantity(
    store: Store, settings: DataSettings, units: Units, num_sites: int, seed: int
) -> list[list[str]]:
    """Quantity skew: sites of sizes drawn from Dir(α) (arXiv 2102.02079, section 4.3)."""
    order = shuffled(units, seed, "sites")

    def draw(generator: np.random.Generator) -> list[list[str]]:
        return _cut(order, generator.dirichlet(np.full(num_sites, settings.partition_alpha)))

    return _until_filled(draw, units, settings, num_sites, seed)


def _cut(names: Sequence[str], shares: NDArray[np.float64]) -> list[list[str]]:
    """A list cut into parts of the given shares, which add up to 1."""
    ends = np.floor(np.cumsum(shares)[:-1] * len(names) + 0.5).astype(int)
    return [list(part) for part in np.split(np.array(names, dtype=object), ends)]


def _until_filled(
    draw: Callable[[np.random.Generator], list[list[str]]],
    units: Units,
    settings: DataSettings,
    num_sites: int,
    seed: int,
) -> list[list[str]]:
    """Draws until every site holds `FEWEST` units."""
    generator = generator_for(seed, settings.partition)
    for _ in range(_DRAWS):
        sites = draw(generator)
        if min(map(len, sites)) >= FEWEST:
            return sites
    raise UserError(
        f"data.partition={settings.partition} with data.partition_alpha={settings.partition_alpha} "
        f"left a site with fewer than {FEWEST} of {len(units)} patients or lesions in each of "
        f"{_DRAWS} draws; raise data.partition_alpha or lower federation.num_sites ({num_sites})"
    )


_WAYS: dict[str, Callable[[Store, DataSettings, Units, int, int], list[list[str]]]] = {
    "uniform": _uniform,
    "dirichlet": _dirichlet,
    "quantity": _quantity,
    "one_finding": _uniform,  # the sites differ in the labels that they have: `known_findings`
}
