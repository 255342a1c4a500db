"""The manifest: one typed table per site of what it holds, and to what use it is put."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediffusion_core.data.dataset import SPLITS
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.partitioning.splits import ClientPartition
from mediffusion_core.data.pseudonyms import hashed, site_salt

SALTS = "salts"


def write_manifests(dataset: FederatedDataset, folder: Path) -> tuple[Path, ...]:
    """Writes `SITE.parquet` for every site into a folder, and returns their paths.

    Columns: `image` (name), `labels` (a struct with one boolean per class, null where the label is
    missing or withheld), `labelled` (whether the site trains on or validates with it), `patient_id`
    (BLAKE2b keyed with the site's own salt, 32 digits), `split` and `site`.

    The salt of a site is drawn once and kept beside the store, readable by its owner alone: without
    it a patient id can't be found by hashing all that there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with TemporaryDirectory(prefix=".building-", dir=folder) as building:
        for client in dataset.clients:
            salt = site_salt(dataset.store.place / SALTS, client.site)
            path = Path(building, f"{client.site}.parquet")
            pq.write_table(manifest(dataset, client, salt), path)
            paths.append(path.replace(folder / path.name))
    return tuple(paths)


def manifest(dataset: FederatedDataset, client: ClientPartition, salt: bytes) -> pa.Table:
    """One site's manifest, in the order of its splits."""
    store = dataset.store
    rows = client.rows
    labels = np.concatenate([dataset.labels(client, split) for split in SPLITS])  # (n, C)
    classes = [pa.array(column == 1, mask=np.isnan(column), type=pa.bool_()) for column in labels.T]
    columns = {
        "image": pa.array([store.image_ids[row] for row in rows], pa.string()),
        "labels": pa.StructArray.from_arrays(classes, list(store.classes)),
        "labelled": pa.array(~np.isnan(labels).all(axis=1), pa.bool_()),
        "patient_id": pa.array([hashed(store.groups[row], salt) for row in rows], pa.string()),
        "split": pa.array(
            [split for split in SPLITS for _ in getattr(client, split)],
            pa.dictionary(pa.int8(), pa.string()),
        ),
        "site": pa.array([client.site] * len(rows), pa.dictionary(pa.int16(), pa.string())),
    }
    return pa.table(columns)
