"""A public encoder's features of all images of a store, computed once and kept beside them."""

from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import replacing
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset, Progress
from mediffusion_core.data.store.prepared import Store
from mediffusion_core.models.public_encoders import (
    ENCODER_WIDTHS,
    PublicEncoder,
    build_encoder,
)
from mediffusion_core.settings import AlignmentSettings

BATCH = 32
FORMAT = 1
"""Of the kept features. Other features of the encoder need another number."""


def public_features(
    dataset: FederatedDataset,
    rows: NDArray[np.int64],
    alignment: AlignmentSettings,
    device: torch.device,
    on_batch: Progress = lambda done, count: None,
) -> torch.Tensor:
    """Features of some images of a data set, which the encoder sees at its own resolution.

    The first process computes those of all images, others wait for it, and later runs find them.

    Args:
        dataset: That the images belong to.
        rows: Of the images in its store, (n,).
        alignment: Names the encoder and the side of its images.
        device: Where the encoder runs.
        on_batch: Told about the progress.

    Returns:
        (n, D) float32.

    Raises:
        UserError: if the images cannot be read at that size, or the encoder's weights are missing.
    """
    assert dataset.at_size is not None
    store = dataset.at_size(alignment.image_size, on_batch)
    shape = (len(store.images), ENCODER_WIDTHS[alignment.encoder])
    path = store.place / f"{alignment.encoder}-{FORMAT}.npy"
    features = _read(path, shape)
    if features is None:
        with FileLock(f"{path}.lock"):
            features = _read(path, shape)
            if features is None:
                encoder = build_encoder(alignment.encoder, alignment.image_size, device)
                features = _computed(store, encoder, on_batch)
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, features)
    return torch.from_numpy(features[rows_there(dataset.store, rows, store)]).float()


def rows_there(here: Store, rows: NDArray[np.int64], there: Store) -> NDArray[np.int64]:
    """The rows of the same images in the other store, from which other images may be missing."""
    numbers = {name: number for number, name in enumerate(there.image_ids)}
    names = [here.image_ids[row] for row in rows.tolist()]
    if missing := [name for name in names if name not in numbers]:
        raise UserError(f"{len(missing)} images cannot be read at the size that the encoder needs")
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _computed(store: Store, encoder: PublicEncoder, on_batch: Progress) -> NDArray[np.float16]:
    """The features (N, D) of all images of a store."""
    images, computed = store.images, np.empty((len(store.images), encoder.width), np.float16)
    for rows in np.split(np.arange(len(images)), range(BATCH, len(images), BATCH)):
        computed[rows] = encoder(as_batch(images[rows])).numpy()
        on_batch(int(rows[-1]) + 1, len(images))
    return computed


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float16] | None:
    """The kept features; None where there are none, or they are damaged."""
    try:
        kept: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.shape == shape and kept.dtype == np.float16 else None
