"""Ground truth of an image beside its labels: regions of findings and marks, true images."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.readers import read_source
from mediffusion_core.data.readers.phantom import (
    finding_mask,
    mark_mask,
    with_finding,
    without_finding,
)
from mediffusion_core.data.store.images import ImageError, fit
from mediffusion_core.settings import DataSettings, Settings

Truth = Callable[[int, str], NDArray[np.uint8] | None]
"""Row of the store and a finding, to the pixels (S, S) of the same patient without or with it."""

Where = Callable[[int, str], NDArray[np.bool_] | None]
"""Row of the store and a finding, to the pixels (S, S) where it is."""

PlantedMark = Callable[[int], NDArray[np.bool_]]
"""Row of the store to the pixels (S, S) of its planted mark."""


def patients_without(settings: Settings, dataset: FederatedDataset) -> Truth | None:
    """The same patients without a finding, as their scanners show them; None but for phantoms."""
    return _redrawn(settings, dataset, without_finding)


def patients_with(settings: Settings, dataset: FederatedDataset) -> Truth | None:
    """The same patients with a finding: one of many ways to have it; None but for phantoms."""
    return _redrawn(settings, dataset, with_finding)


def _redrawn(
    settings: Settings,
    dataset: FederatedDataset,
    draw: Callable[[DataSettings, int, str, str], NDArray[np.uint8]],
) -> Truth | None:
    if settings.data.source != "phantom":
        return None
    ids = dataset.store.image_ids

    def truth(row: int, finding: str) -> NDArray[np.uint8]:
        return dataset.as_scanned(row, draw(settings.data, settings.seed, ids[row], finding))

    return truth


def finding_regions(settings: Settings, dataset: FederatedDataset) -> Where | None:
    """Regions of findings, at the size of the prepared images; None if the data set has no marks.

    In phantoms each finding has its own pixels; of other images the marks of the data set are
    taken: the boxes of that finding, or the lesion, whatever it is.

    Raises:
        UserError: when asked for a mark that turns out to be damaged.
    """
    ids = dataset.store.image_ids
    size = settings.data.image_size
    if settings.data.source == "phantom":
        return lambda row, finding: finding_mask(settings.data, settings.seed, ids[row], finding)
    source = read_source(settings.data, settings.seed)
    regions = source.regions
    if regions is None:
        return None
    index_of = {name: index for index, name in enumerate(source.image_ids)}

    def where(row: int, finding: str) -> NDArray[np.bool_] | None:
        try:
            marked = regions(index_of[ids[row]], finding)
        except ImageError as error:
            raise UserError(f"{ids[row]}: {error}") from None
        if marked is None:
            return None
        return fit(marked.astype(np.uint8) * 255, size, 1)[..., 0] > 127

    return where


def planted_mark(settings: Settings, dataset: FederatedDataset) -> PlantedMark | None:
    """Regions of the planted mark, none of it where an image has none; None if none is planted."""
    if settings.data.source != "phantom" or settings.data.phantom.mark.site is None:
        return None
    ids = dataset.store.image_ids
    return lambda row: mark_mask(settings.data, settings.seed, ids[row])
