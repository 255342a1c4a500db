"""Divides the images among sites and splits, and selects those that keep their label.

Units (patients or lesions, joined where they share an image) are dealt whole. Their order comes
from a hash of seed, site and unit, so it depends neither on the order of the store nor on which
other units there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.dataset import SPLITS
from mediffusion_core.data.partitioning.label_selection import choose_labelled, has_label
from mediffusion_core.data.partitioning.partitioners import (
    Units,
    divide,
    known_findings,
    shuffled,
    strata,
)
from mediffusion_core.data.store.prepared import Store
from mediffusion_core.settings import DataSettings

SERVER = "server"
"""Name of the server's own part of the data, where it alone holds labels."""
POOLED = "pooled"
"""Name of the one place that holds all images, where nothing is federated."""


@dataclass(frozen=True)
class ClientPartition:
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


def partition(
    store: Store, settings: DataSettings, num_sites: int, seed: int
) -> tuple[ClientPartition, ...]:
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
        One client partition per site, in the order of their names for natural sites.

    Raises:
        UserError: no natural sites or another number of them; too few units; no official splits
            where they are asked for; more labelled sites than sites; an unknown site in
            `data.labelled_fraction_by_site`.
    """
    sites = divide(store, settings, num_sites, seed)
    fractions = labelled_fractions(settings, tuple(sites))
    return tuple(
        _client(
            store, settings, site, units, seed, fractions[site], known_findings(settings, store, k)
        )
        for k, (site, units) in enumerate(sites.items())
    )


def labels_to_server(
    store: Store, clients: Sequence[ClientPartition]
) -> tuple[ClientPartition, ...]:
    """Moves all units with a label to one more participant, the server's own part.

    The public test set stays as it is, so that it is the same for all fractions, and the server's
    training images are nested as the sites' labelled sets are.

    Raises:
        UserError: where no label is left to move, or nothing else to a site; where a site is
            called as the server is.
    """
    kept, moved = zip(*(_parted(store, client) for client in clients), strict=True)
    train = np.concatenate([client.train for client in moved])
    if not len(train):
        raise UserError("data.labels_at=server: no image is labelled, raise data.labelled_fraction")
    order = np.argsort(train)
    server = ClientPartition(
        site=SERVER,
        train=train[order],
        validation=np.sort(np.concatenate([client.validation for client in moved])),
        test=train[:0],
        labelled=np.concatenate([client.labelled for client in moved])[order],
        validation_labelled=True,
        known=np.ones(len(store.classes), dtype=np.bool_),
    )
    return (*kept, server)


def pooled(clients: Sequence[ClientPartition]) -> ClientPartition:
    """All sites as one, with the same splits and labels: the baseline without federation.

    The sites' labels must be of the same classes. Validation images of a site without labels
    are left out, as they are where the sites stay apart.
    """
    train = np.concatenate([client.train for client in clients])
    validation = [client.validation for client in clients if client.validation_labelled]
    order = np.argsort(train)
    return ClientPartition(
        site=POOLED,
        train=train[order],
        validation=np.sort(np.concatenate(validation or [train[:0]])),
        test=np.sort(np.concatenate([client.test for client in clients])),
        labelled=np.concatenate([client.labelled for client in clients])[order],
        validation_labelled=bool(validation),
        known=clients[0].known,
    )


def _parted(store: Store, client: ClientPartition) -> tuple[ClientPartition, ClientPartition]:
    """A site without its units with a label, and these; its test images stay with it."""
    if client.site == SERVER:
        raise UserError(f"data.labels_at=server: the data has a centre named {SERVER!r}")
    going = np.isin(store.units[client.train], store.units[client.train[client.labelled]])
    if going.all():
        raise UserError(
            f"data.labels_at=server leaves site {client.site} no image to train on; "
            "lower data.labelled_fraction"
        )
    nothing = client.test[:0]
    held = client.validation_labelled
    staying = replace(
        client,
        train=client.train[~going],
        labelled=client.labelled[~going],
        validation=nothing if held else client.validation,
        validation_labelled=False,
    )
    leaving = replace(
        client,
        train=client.train[going],
        labelled=client.labelled[going],
        validation=client.validation if held else nothing,
        test=nothing,
    )
    return staying, leaving


def labelled_fractions(settings: DataSettings, sites: Sequence[str]) -> dict[str, float]:
    """The share of labels each site keeps: its own, none beyond the labelled sites, else all's.

    Raises:
        UserError: more labelled sites than sites; an unknown site in
            `data.labelled_fraction_by_site`.
    """
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


def _client(
    store: Store,
    settings: DataSettings,
    site: str,
    units: Units,
    seed: int,
    fraction: float,
    known: NDArray[np.bool_],
) -> ClientPartition:
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
    labels = np.where(known, store.labels, np.nan)  # (N, C), what the site can know
    chosen = choose_labelled(
        labels,
        {name: units[name] for name in splits["train"]},
        shuffled(splits["train"], seed, site, "labels"),
        fraction,
    )
    rows = np.concatenate([np.empty(0, np.int64), *(units[name] for name in chosen)])
    return ClientPartition(
        site=site,
        train=train,
        validation=validation,
        test=test,
        labelled=np.isin(train, rows) & has_label(labels[train]),
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

    If the site has no validation images, or if no test split was published, the settings' share of
    the training split takes its place.
    """
    published = published_splits(store)
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name in _order(store, site, units, seed):
        splits[published_split(published, units[name])].append(name)
    shares: dict[str, float] = {}
    if not splits["validation"]:
        shares["validation"] = settings.validation_fraction
    if "test" not in published:
        shares["test"] = settings.test_fraction
    if not shares:
        return splits
    return splits | _deal(splits["train"], units, {"train": 1 - sum(shares.values()), **shares})


def published_splits(store: Store) -> Sequence[str]:
    """The split of each image that the data set was published with.

    Raises:
        UserError: if it was published without.
    """
    if store.splits is None:
        raise UserError("data.splits=official: this data has no official splits, use dealt")
    return store.splits


def published_split(published: Sequence[str], rows: NDArray[np.int64]) -> str:
    """The split of a unit with images in these rows.

    A unit may stand in several splits, because an image was published twice. It then goes to the
    test split first, then to the validation split, so that no test image trains.
    """
    standing: str = max((published[row] for row in rows.tolist()), key=SPLITS.index)
    return standing


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
