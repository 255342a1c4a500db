"""The federated dataset: one prepared store of images, and the partition of each client."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.checks.check_result import CheckResult
from mediffusion_core.data.dataset import SPLITS, Source, UnitNames
from mediffusion_core.data.image_set import ImageSet, Pixels
from mediffusion_core.data.partitioning.keyed_dealing import UnitHash, by_group, deal_by_hash
from mediffusion_core.data.partitioning.scanner import ScannedImages, draw_scanner
from mediffusion_core.data.partitioning.splits import (
    ClientPartition,
    labels_to_server,
    partition,
    pooled,
)
from mediffusion_core.data.pseudonyms import user_secret
from mediffusion_core.data.readers import FINDS_CLASSES, read_source
from mediffusion_core.data.store.prepared import Store, default_store_folder, prepare
from mediffusion_core.settings import Settings

Progress = Callable[[int, int], None]
"""Told (done, total)."""


@dataclass(frozen=True)
class FederatedDataset:
    """All images. A site opens its own partition, the server the public test set."""

    store: Store
    clients: tuple[ClientPartition, ...]
    """The clients that train, with their images."""
    centres: tuple[ClientPartition, ...]
    """As the images were dealt; the public test set has a share of each centre's."""
    use_unlabelled: bool
    pixels: Pixels
    """The store's images, changed by the sites' scanners where the settings simulate these."""
    notes: tuple[CheckResult, ...] = ()
    """The reader's warnings and notes."""
    attributes: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """By attribute of `data.attributes`, the subgroup of each of the store's images."""
    names: UnitNames = field(default_factory=UnitNames)
    """The unit that groups name, and the key of their names."""
    unit_hash: UnitHash | None = field(default=None, repr=False)
    """The hash that dealt the units, with differential privacy alone."""
    at_size: Callable[[int, Progress | None], Store] | None = field(default=None, repr=False)
    """Prepares the same images at another side in pixels; None where they were not read here."""

    def train(self, site: int) -> ImageSet:
        """The site's training images; withheld labels are NaN."""
        client = self.clients[site]
        rows, labels = client.train, self.labels(client, "train")
        if not self.use_unlabelled:
            rows, labels = rows[client.labelled], labels[client.labelled]
        return ImageSet(self.pixels, rows, torch.from_numpy(labels))

    def validation(self, site: int) -> ImageSet:
        """The site's held-out patients, empty at a site without labels."""
        client = self.clients[site]
        rows = client.validation if client.validation_labelled else client.validation[:0]
        labels = self.labels(client, "validation")[: len(rows)]
        return ImageSet(self.pixels, rows, torch.from_numpy(labels))

    def evaluated(self, site: int, patients: Literal["test", "all"]) -> ImageSet:
        """The site's images with a known label, of its test patients or of all.

        Labels that a simulation withholds from training are among them.
        """
        client = self.clients[site]
        rows = np.sort(client.test if patients == "test" else client.rows)
        known = ~np.isnan(self.store.labels[rows]).all(axis=1)
        rows = rows[known]
        return ImageSet(self.pixels, rows, torch.from_numpy(self.store.labels[rows]))

    def every_image(self, site: int) -> ImageSet:
        """All images of the site, split by split; withheld labels are NaN."""
        client = self.clients[site]
        labels = np.concatenate([self.labels(client, split) for split in SPLITS])
        return ImageSet(self.pixels, client.rows, torch.from_numpy(labels))

    def labels(self, client: ClientPartition, split: str) -> NDArray[np.float32]:
        """Labels of a site's images in a split, (n, C): NaN where a label is withheld.

        The public test set keeps all its labels, those that are withheld from the site included.
        """
        labels: NDArray[np.float32] = self.store.labels[getattr(client, split)].copy()
        if split == "train":
            labels[~client.labelled] = np.nan
        if split == "validation" and not client.validation_labelled:
            labels[:] = np.nan
        if split != "test":
            labels[:, ~client.known] = np.nan
        return labels

    @cached_property
    def test_rows(self) -> NDArray[np.int64]:
        """Rows of the public test set: every site's share, on which no site trains."""
        return np.sort(np.concatenate([client.test for client in self.centres]))

    def test(self) -> ImageSet:
        """The public test set."""
        labels = torch.from_numpy(self.store.labels[self.test_rows])
        return ImageSet(self.pixels, self.test_rows, labels)

    def as_scanned(self, row: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Another image (H, W) of the patient in a row, as the scanner there would render it."""
        if isinstance(self.pixels, ScannedImages):
            return self.pixels.scanner(row).render(image[None, ..., None])[0, ..., 0]
        return image

    def groups(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Patient or lesion of each of the given rows."""
        return tuple(self.store.groups[row] for row in rows)

    def site_of_test(self) -> tuple[str, ...]:
        """Site of each image of the public test set."""
        site = {int(row): client.site for client in self.centres for row in client.test}
        return tuple(site[int(row)] for row in self.test_rows)


def open_federated_dataset(
    settings: Settings,
    progress: Progress | None = None,
    secret: bytes | None = None,
) -> FederatedDataset:
    """Reads, prepares and deals the images that the settings name.

    Args:
        settings: Of the run.
        progress: Told (done, total) while images are decoded.
        secret: Of a deployed site with a site file. None: the secret of the user's simulated
            sites; the server then holds the test set.

    Raises:
        UserError: if the images cannot be read or dealt as asked.
    """
    data = settings.data
    source = read_source(data, settings.seed, secret)
    folder = data.store or default_store_folder()
    store = prepare(source, data, folder, progress)
    dataset = deal(source, store, settings, secret)

    def at_size(side: int, progress: Progress | None) -> Store:
        # Phantoms are drawn at the size that their reader is told.
        sized = data.model_copy(update={"image_size": side})
        return prepare(read_source(sized, settings.seed, secret), sized, folder, progress)

    return replace(dataset, at_size=at_size)


def deal(
    source: Source, store: Store, settings: Settings, secret: bytes | None = None
) -> FederatedDataset:
    """Deals prepared images to sites, splits and labels; with privacy each unit by its own hash.

    Args:
        source: What the reader returned.
        store: Of the source.
        settings: Of the run.
        secret: As for `open_federated_dataset`.

    Raises:
        UserError: if the images cannot be dealt as asked.
    """
    data, seed = settings.data, settings.seed
    unit_hash = None
    if settings.privacy.enabled:
        if data.classes is None and source.name in FINDS_CLASSES:
            raise UserError(
                "with privacy.enabled the classes must not depend on who is in the data; set "
                f"data.classes=[{','.join(source.classes)}]"
            )
        unit_hash = UnitHash(seed, secret or user_secret(), public_test=secret is None)
        store = by_group(store)
        centres = deal_by_hash(store, data, settings.federation.num_sites, unit_hash)
        if secret is None and not any(len(centre.test) for centre in centres):
            raise UserError(
                f"data.splits={data.splits}, data.test_fraction={data.test_fraction}: no patient "
                "is in the test set; raise the fraction, or with official splits use dealt"
            )
    else:
        centres = partition(store, data, settings.federation.num_sites, seed)
    return FederatedDataset(
        store=store,
        clients=_participants(store, centres, settings),
        centres=centres,
        use_unlabelled=data.use_unlabelled,
        pixels=_pixels(store, centres, data.scanner_shift, seed),
        notes=source.notes,
        attributes=_attributes(source, store),
        names=source.names,
        unit_hash=unit_hash,
    )


def _attributes(source: Source, store: Store) -> dict[str, NDArray[np.str_]]:
    """The attributes of the images that were prepared, in the order of the store."""
    index_of = {name: index for index, name in enumerate(source.image_ids)}
    order = [index_of[name] for name in store.image_ids]
    return {
        name: np.array([given[index] for index in order], dtype=np.str_)
        for name, given in source.attributes.items()
    }


def require_unit(dataset: FederatedDataset, settings: Settings) -> None:
    """Checks that the images of the sites name the privacy unit of the run.

    The server's own images may name less: they are public.

    Raises:
        UserError: if they do not; the promise would be for smaller units than the settings say.
    """
    unit, named = settings.privacy.unit, dataset.names.unit
    if not settings.privacy.enabled or unit in ("image", named):
        return
    allowed = "image" if named == "image" else f"{named} and image"
    reader = settings.data.source
    hint = "; data.columns.patient names patients" if reader in ("folder", "dicom") else ""
    raise UserError(
        f"privacy.unit={unit}: the data name no {unit} of each image; allowed: {allowed}{hint}"
    )


def _participants(
    store: Store, centres: tuple[ClientPartition, ...], settings: Settings
) -> tuple[ClientPartition, ...]:
    federation = settings.federation
    if federation.only_site is not None:
        return (_named(centres, "only_site", federation.only_site),)
    if federation.left_out_site is not None:
        left_out = _named(centres, "left_out_site", federation.left_out_site)
        centres = tuple(centre for centre in centres if centre is not left_out)
    if federation.pool_sites:
        return (pooled(centres),)
    if settings.data.labels_at == "server":
        return labels_to_server(store, centres)
    return centres


def _named(centres: Sequence[ClientPartition], setting: str, name: str) -> ClientPartition:
    for centre in centres:
        if centre.site == name:
            return centre
    names = ", ".join(centre.site for centre in centres)
    raise UserError(f"federation.{setting}={name}: no such site; allowed: {names}")


def _pixels(store: Store, clients: Sequence[ClientPartition], strength: float, seed: int) -> Pixels:
    if not strength:
        return store.images
    scanner_of = np.zeros(len(store.images), dtype=np.int64)
    for number, client in enumerate(clients):
        scanner_of[client.rows] = number
    scanners = tuple(draw_scanner(strength, seed, client.site) for client in clients)
    return ScannedImages(store.images, scanners, scanner_of)
