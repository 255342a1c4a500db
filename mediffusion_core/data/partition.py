"""Who holds which images, which of them train, and which of those keep their label.

Units (patients or lesions, joined where they share an image) are dealt whole. Their order comes
from a hash of seed, site and unit, so it depends neither on the order of the store nor on which
other units there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.contract import SPLITS
from mediffusion_core.data.labelling import choose_labelled, has_label
from mediffusion_core.data.sites import Units, divide, known_findings, shuffled, strata
from mediffusion_core.data.store import Store
from mediffusion_core.errors import UserError
from mediffusion_core.settings import DataSettings

SERVER = "server"
"""Name of the server's own part of the data, where it alone holds labels."""


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
        known: (C,), which classes the site's labels speak of.
    """

    site: str
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    validation_labelled: bool
    known: NDArray[np.bool_]

    @property
    def rows(self) -> NDArray[np.int64]:
        """All images of the site, split by split in the order of `SPLITS`."""
        return np.concatenate([getattr(self, split) for split in SPLITS])


def partition(store: Store, settings: DataSettings, num_sites: int, seed: int) -> tuple[Shard, ...]:
    """Deals the units of a store to sites and, at each site, to splits and labels.

    Splits are stratified by each unit's rarest class, labelled sets by all classes. At one seed
    the labelled set of a smaller fraction is part of that of a larger one. Of n training images
    with a label at most ceil(fraction · n) + C are labelled (C classes); that many only where a
    class would have no labelled unit otherwise, or where one unit is large.

    Args:
        store: the prepared images.
        settings: kind of partition, fractions of splits and labels.
        num_sites: how many sites there are to be.
        seed: the run's seed.

    Returns:
        One shard a site, in the order of their names for natural sites; after them the server's
        where it alone holds labels.

    Raises:
        UserError: no natural sites or another number of them; too few units; no official splits
            where they are asked for; more labelled sites than sites; an unknown site in
            `data.labelled_fraction_by_site`.
    """
    sites = divide(store, settings, num_sites, seed)
    fractions = _labelled_fractions(settings, tuple(sites))
    known = [known_findings(settings, store, position) for position in range(len(sites))]
    if settings.labels_at == "server":
        sites = _labels_to_server(store, sites, fractions, seed)
        fractions = dict.fromkeys(sites, 0.0) | {SERVER: 1.0}
        known.append(np.ones(len(store.classes), dtype=np.bool_))
    return tuple(
        _shard(store, settings, site, units, seed, fractions[site], findings)
        for (site, units), findings in zip(sites.items(), known, strict=True)
    )


def _labels_to_server(
    store: Store, sites: dict[str, Units], fractions: dict[str, float], seed: int
) -> dict[str, Units]:
    """Moves the units that the sites would label to one more participant, the server's part."""
    if SERVER in sites:
        raise UserError(f"data.labels_at=server: the data has a centre named {SERVER!r} already")
    moved: Units = {}
    left: dict[str, Units] = {}
    for site, units in sites.items():
        order = shuffled(units, seed, site, "labels")
        moved |= {
            name: units[name] for name in choose_labelled(store, units, order, fractions[site])
        }
        left[site] = {name: rows for name, rows in units.items() if name not in moved}
    return left | {SERVER: moved}


def _labelled_fractions(settings: DataSettings, sites: Sequence[str]) -> dict[str, float]:
    """The share of labels each site keeps: its own, none beyond the labelled sites, else all's."""
    for site in settings.labelled_fraction_by_site:
        if site not in sites:
            raise UserError(
                f"data.labelled_fraction_by_site names {site!r}, allowed are {', '.join(sites)}"
            )
    count = len(sites) if settings.labelled_sites is None else settings.labelled_sites
    if count > len(sites):
        raise UserError(f"data.labelled_sites={count}: there are only {len(sites)} sites")
    fractions = {
        site: settings.labelled_fraction if position < count else 0.0
        for position, site in enumerate(sites)
    }
    return fractions | dict(settings.labelled_fraction_by_site)


def _shard(
    store: Store,
    settings: DataSettings,
    site: str,
    units: Units,
    seed: int,
    fraction: float,
    known: NDArray[np.bool_],
) -> Shard:
    deal = _official if settings.splits == "official" else _dealt
    splits = deal(store, settings, site, units, seed)
    for split, names in splits.items():
        if not names:
            raise UserError(
                f"site {site} has {len(units)} groups (patients or lesions), too few for "
                f"a {split} split"
            )
    train, validation, test = (
        np.sort(np.concatenate([units[name] for name in splits[split]])) for split in SPLITS
    )
    chosen = choose_labelled(
        store,
        {name: units[name] for name in splits["train"]},
        shuffled(splits["train"], seed, site, "labels"),
        fraction,
    )
    rows = np.concatenate([np.empty(0, np.int64), *(units[name] for name in chosen)])
    return Shard(
        site=site,
        train=train,
        validation=validation,
        test=test,
        labelled=np.isin(train, rows) & has_label(store)[train],
        validation_labelled=fraction > 0,
        known=known,
    )


def _dealt(
    store: Store, settings: DataSettings, site: str, units: Units, seed: int
) -> dict[str, list[str]]:
    """Splits in the fractions of the settings."""
    fractions = {
        "train": 1 - settings.test_fraction - settings.validation_fraction,
        "test": settings.test_fraction,
        "validation": settings.validation_fraction,
    }
    return _deal(_order(store, site, units, seed), units, fractions)


def _official(
    store: Store, settings: DataSettings, site: str, units: Units, seed: int
) -> dict[str, list[str]]:
    """The splits that the data set was published with.

    A unit that stands in several, because an image was published twice, goes to the one that is
    judged: nothing that is tested was ever trained on. Where no validation split was published,
    its share is taken from the training split.
    """
    if store.splits is None:
        raise UserError("data.splits=official: this data has no official splits, use dealt")
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in _order(store, site, units, seed):
        standing = {store.splits[row] for row in units[name].tolist()}
        splits[max(standing, key=SPLITS.index)].append(name)
    if not splits["validation"]:
        held = settings.validation_fraction
        splits |= _deal(splits["train"], units, {"train": 1 - held, "validation": held})
    return splits


def _order(store: Store, site: str, units: Units, seed: int) -> list[str]:
    """Units stratum by stratum, each in the order of the seed."""
    order = shuffled(units, seed, site, "splits")
    return [name for stratum in strata(store, units, order) for name in stratum]


def _deal(order: Sequence[str], units: Units, fractions: dict[str, float]) -> dict[str, list[str]]:
    """Each unit to the split that is furthest behind its share of the images so far.

    Every run of neighbours, and so every stratum, is shared out in these fractions. A split
    ends at most 4/3 of the largest unit away from its share.
    """
    behind = dict.fromkeys(fractions, 0.0)
    splits: dict[str, list[str]] = {split: [] for split in fractions}
    for name in order:
        size = len(units[name])
        for split, fraction in fractions.items():
            behind[split] += fraction * size
        furthest = max(behind, key=lambda split: behind[split])
        behind[furthest] -= size
        splits[furthest].append(name)
    return splits
