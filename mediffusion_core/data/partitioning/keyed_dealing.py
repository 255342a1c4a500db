"""Deals each unit by a keyed hash of that unit alone, for runs with differential privacy.

A unit (patient or lesion) more or less at a site changes the use of no other unit. The guarantee
for the training units then is one for the units of the site: neighbouring data sets have
neighbouring training sets.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.dataset import SPLITS
from mediffusion_core.data.partitioning.label_selection import has_label
from mediffusion_core.data.partitioning.partitioners import (
    Units,
    known_findings,
    natural_sites,
    units_of,
)
from mediffusion_core.data.partitioning.splits import (
    ClientPartition,
    labelled_fractions,
    published_split,
    published_splits,
)
from mediffusion_core.data.pseudonyms import hashed
from mediffusion_core.data.store.prepared import Store
from mediffusion_core.settings import DataSettings


class UnitHash:
    """Numbers that follow from the name of a unit alone, by a keyed hash.

    The site's secret is the key. Where the server holds the test set, the run's seed is the key of
    the simulated site and of the test set, since server and sites must agree on both.
    """

    def __init__(self, seed: int, secret: bytes, *, public_test: bool) -> None:
        """Takes the run's seed, the site's secret, and whether the server holds the test set."""
        self._seed, self._secret = seed, secret
        self._key_of_test = _key(seed) if public_test else secret

    def site(self, unit: str, num_sites: int) -> int:
        """The simulated site of a unit, by the public key."""
        return int(_uniform("site", self._seed, unit, _key(self._seed)) * num_sites)

    def split(self, unit: str, test_fraction: float, validation_fraction: float) -> str:
        """The split of a unit, one of `SPLITS`; the fractions are of all units."""
        if _uniform("test", self._seed, unit, self._key_of_test) < test_fraction:
            return "test"
        drawn = _uniform("validation", self._seed, unit, self._secret)
        return "validation" if drawn * (1 - test_fraction) < validation_fraction else "train"

    def is_labelled(self, unit: str, fraction: float) -> bool:
        """Whether a unit keeps its labels; the sets of smaller fractions are in those of larger."""
        return _uniform("labels", self._seed, unit, self._secret) < fraction

    def seed_of(self, image_id: str, purpose: str) -> int:
        """A secret seed of 32 bits for draws about one image."""
        return int(_uniform(purpose, self._seed, image_id, self._secret) * 2**32)

    def digest(self) -> str:
        """Tells one secret from another, and nothing else of it."""
        return hashed("digest of the secret", self._secret)


def _key(seed: int) -> bytes:
    return f"seed {seed}".encode()


def _uniform(purpose: str, seed: int, name: str, key: bytes) -> float:
    """A number in [0, 1), a multiple of 2⁻⁵³."""
    return (int(hashed(f"{purpose}|{seed}|{name}", key)[:16], 16) >> 11) / 2**53


def by_group(store: Store) -> Store:
    """The store with each patient or lesion as one unit.

    A duplicate joins two units otherwise, so that one of them decides where the other goes.
    """
    numbers = np.unique(np.array(list(store.groups), dtype=object), return_inverse=True)[1]
    return replace(store, units=numbers.astype(np.int64))


def deal_by_hash(
    store: Store, settings: DataSettings, num_sites: int, unit_hash: UnitHash
) -> tuple[ClientPartition, ...]:
    """Deals the units of a store to sites, splits and labels, each by its own hash.

    The numbers of units are random around their fractions. A site may have no labelled unit, or
    none at all in a split.

    Args:
        store: Of `by_group`.
        settings: Kind of partition, fractions of splits and labels.
        num_sites: How many sites there are to be.
        unit_hash: The hash.

    Returns:
        One client partition per site, in the order of their names for natural sites.

    Raises:
        UserError: no natural sites or another number of them; no official splits where they are
            asked for; an unknown site in `data.labelled_fraction_by_site`.
    """
    sites = _sites(store, settings, num_sites, unit_hash)
    fractions = labelled_fractions(settings, tuple(sites))
    return tuple(
        _client(store, settings, site, units, unit_hash, fractions[site], number)
        for number, (site, units) in enumerate(sites.items())
    )


def _sites(
    store: Store, settings: DataSettings, num_sites: int, unit_hash: UnitHash
) -> dict[str, Units]:
    units = units_of(store)
    if settings.partition == "natural":
        return natural_sites(store, units, num_sites)
    sites: list[Units] = [{} for _ in range(num_sites)]
    for name, rows in units.items():
        sites[unit_hash.site(name, num_sites)][name] = rows
    return {f"site-{number}": held for number, held in enumerate(sites)}


def _client(
    store: Store,
    settings: DataSettings,
    site: str,
    units: Units,
    unit_hash: UnitHash,
    fraction: float,
    number: int,
) -> ClientPartition:
    split_of = {
        name: _split(store, settings, rows, unit_hash, name) for name, rows in units.items()
    }
    train, validation, test = (
        _rows(units[name] for name in units if split_of[name] == split) for split in SPLITS
    )
    known = known_findings(settings, store, number)
    chosen = _rows(rows for name, rows in units.items() if unit_hash.is_labelled(name, fraction))
    labels = np.where(known, store.labels[train], np.nan)  # (n, C), what the site can know
    return ClientPartition(
        site=site,
        train=train,
        validation=validation,
        test=test,
        labelled=np.isin(train, chosen) & has_label(labels),
        validation_labelled=fraction > 0,
        known=known,
    )


def _split(
    store: Store, settings: DataSettings, rows: NDArray[np.int64], unit_hash: UnitHash, name: str
) -> str:
    if settings.splits == "dealt":
        return unit_hash.split(name, settings.test_fraction, settings.validation_fraction)
    standing = published_split(published_splits(store), rows)
    if standing == "train":  # a share of them, whether or not others stand in a published split
        return unit_hash.split(name, 0.0, settings.validation_fraction)
    return standing


def _rows(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
