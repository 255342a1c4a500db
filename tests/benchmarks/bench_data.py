"""How quick and how large the prepared store is: `make bench` prints one JSON line a figure.

python tests/benchmarks/bench_data.py [FOLDER_OF_REAL_DATA]
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from figures import report

from mediffusion_core.data import Store, prepare, read_source
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.store.prepared import open_store
from mediffusion_core.settings import DataSettings

MILLION = 1_000_000
EPOCH = 100_000
BATCH = 256


@contextmanager
def stopwatch(figure: str, **settings: object) -> Iterator[None]:
    began = time.perf_counter()
    yield
    report(figure, time.perf_counter() - began, "s", **settings)


def resident() -> int:
    """Bytes of this process in memory, file pages included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def synthetic_store(place: Path, count: int) -> Path:
    """A store of `count` grey 64 px images of zeros; its pixels take no room on disk."""
    place.mkdir()
    images = np.lib.format.open_memmap(
        place / "images.npy", mode="w+", dtype=np.uint8, shape=(count, 64, 64, 1)
    )
    del images
    ids = np.array([f"image-{index:08d}".encode() for index in range(count)])
    columns = {
        "image_ids": ids,
        "labels": np.zeros((count, 14), np.float32),
        "groups": ids,
        "units": np.arange(count),
        "duplicates": np.empty((0, 2), np.int64),
    }
    for name, values in columns.items():
        np.save(place / f"{name}.npy", values)
    (place / "bad_images.csv").write_text("image,reason\n")
    description = {"classes": [f"c{index}" for index in range(14)], "multi_label": True}
    (place / "store.json").write_text(json.dumps(description))
    return place


def bench_epoch(store: Store) -> None:
    images = ImageSet(store.images, np.arange(len(store.images)), torch.zeros(len(store.images), 1))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images.take(torch.arange(len(images)))  # into the page cache
    began = time.perf_counter()
    for chosen in order.split(BATCH):
        images.take(chosen)
    rate = len(images) / (time.perf_counter() - began)
    report("reading a prepared epoch", rate, "images/s", side=64, channels=1, batch=BATCH, seed=0)


def bench_isic(root: Path, folder: Path) -> None:
    settings = DataSettings(source="isic2019", root=root, image_size=64, channels=3)
    for figure in ("preparing ISIC 2019", "preparing it again"):
        with stopwatch(figure, images=10_015, side=64):
            prepare(read_source(settings, 0), settings, folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = synthetic_store(Path(folder) / "million", MILLION)
        before = resident()
        with stopwatch("opening a store of a million images"):
            store = open_store(place)
        report("memory that it takes", (resident() - before) / 1e6, "MB", images=len(store.images))
        bench_epoch(open_store(synthetic_store(Path(folder) / "epoch", EPOCH)))
        root = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data") / "isic2019"
        if root.is_dir():
            bench_isic(root, Path(folder) / "stores")
        else:
            print(f"no images at {root}: preparing them is not measured", file=sys.stderr)


if __name__ == "__main__":
    main()
