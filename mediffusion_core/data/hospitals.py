"""The simulated hospitals: one prepared store, and which of its images each of them holds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partition import Shard, partition
from mediffusion_core.data.source import read_source
from mediffusion_core.data.store import Store, default_store_folder, prepare
from mediffusion_core.settings import Settings


@dataclass(frozen=True)
class Hospitals:
    """All sites' images. A site opens only its own shard, the server only the public test set."""

    store: Store
    shards: tuple[Shard, ...]
    use_unlabelled: bool

    def train(self, site: int) -> ImageSet:
        """The site's training images; withheld labels are NaN."""
        shard = self.shards[site]
        labels = self.store.labels[shard.train].copy()
        labels[~shard.labelled] = np.nan
        rows = shard.train
        if not self.use_unlabelled:
            rows, labels = rows[shard.labelled], labels[shard.labelled]
        return ImageSet(self.store.images, rows, torch.from_numpy(labels))

    def validation(self, site: int) -> ImageSet:
        """The site's held-out patients, empty at a site without labels."""
        shard = self.shards[site]
        rows = shard.validation if shard.validation_labelled else shard.validation[:0]
        return self._images(rows)

    @cached_property
    def test_rows(self) -> NDArray[np.int64]:
        """Rows of the public test set: every site's share, on which no site trains."""
        return np.sort(np.concatenate([shard.test for shard in self.shards]))

    def test(self) -> ImageSet:
        """The public test set."""
        return self._images(self.test_rows)

    def groups(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Patient or lesion of each of the given rows."""
        return tuple(self.store.groups[row] for row in rows)

    def site_of_test(self) -> tuple[str, ...]:
        """Site of each image of the public test set."""
        site = {int(row): shard.site for shard in self.shards for row in shard.test}
        return tuple(site[int(row)] for row in self.test_rows)

    def _images(self, rows: NDArray[np.int64]) -> ImageSet:
        return ImageSet(self.store.images, rows, torch.from_numpy(self.store.labels[rows]))


def open_hospitals(
    settings: Settings, progress: Callable[[int, int], None] | None = None
) -> Hospitals:
    """Reads, prepares and deals the images that the settings name.

    Raises:
        UserError: if the images cannot be read or dealt as asked.
    """
    source = read_source(settings.data, settings.seed)
    folder = settings.data.store or default_store_folder()
    store = prepare(source, settings.data, folder, progress)
    shards = partition(store, settings.data, settings.federation.num_sites, settings.seed)
    return Hospitals(store, shards, settings.data.use_unlabelled)
