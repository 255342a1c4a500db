"""MedMNIST's two-dimensional sets as they are published (Yang et al. 2023, arXiv:2110.14795).

One `.npz` with `{train,val,test}_{images,labels}`; the three parts are joined, since every run
splits for itself.
"""

import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.contract import Source, fingerprint
from mediffusion_core.data.images import ImageError
from mediffusion_core.data.tables import data_root
from mediffusion_core.errors import UserError
from mediffusion_core.settings import DataSettings

PARTS = ("train", "val", "test")


def read(settings: DataSettings, seed: int) -> Source:
    """One MedMNIST file, `data.root` or the only `.npz` in it; each image is its own group.

    Labels (N, 1) are one class an image, named "0", "1", ...; labels (N, L) are L findings.

    Raises:
        UserError: missing or damaged file, missing arrays, volumes instead of images, labels
            that are neither.
    """
    path = _file(data_root(settings))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            given = [np.asarray(arrays[f"{part}_labels"]) for part in PARTS]
        shapes = [_member(path, f"{part}_images")[1] for part in PARTS]
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"data.root={path}: not a MedMNIST file ({error})") from None
    for part, shape, part_labels in zip(PARTS, shapes, given, strict=True):
        if part_labels.shape[:1] != shape[:1]:
            raise UserError(f"{path}: {part} has {shape[0]} images, {len(part_labels)} labels")

    multi_label, labels = _labels(path, given)
    status = path.stat()
    ends = tuple(np.cumsum([shape[0] for shape in shapes]).tolist())
    names = tuple(
        f"{part}-{index}"
        for part, shape in zip(PARTS, shapes, strict=True)
        for index in range(shape[0])
    )
    return Source(
        name="medmnist",
        classes=tuple(str(index) for index in range(labels.shape[1])),
        multi_label=multi_label,
        image_ids=names,
        labels=labels,
        groups=names,
        centres=None,
        load=partial(load_row, path, status.st_mtime_ns, ends),
        fingerprint=fingerprint(
            reader="medmnist", root=str(path), size=status.st_size, changed=status.st_mtime_ns
        ),
    )


def load_row(path: Path, changed: int, ends: Sequence[int], index: int) -> NDArray[np.uint8]:
    """One image out of the compressed file; quick where indices rise from call to call.

    Raises:
        ImageError: where the compressed stream is damaged.
    """
    part = int(np.searchsorted(ends, index, side="right"))
    row = index - (ends[part - 1] if part else 0)
    try:
        stream, shape, start = _stream(path, changed, f"{PARTS[part]}_images")
        length = int(np.prod(shape[1:]))
        stream.seek(start + row * length)
        pixels = np.frombuffer(stream.read(length), np.uint8)
        return pixels.reshape(shape[1:])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ImageError(f"{type(error).__name__}: {error}") from None


@lru_cache(maxsize=1)
def _stream(path: Path, changed: int, name: str) -> tuple[IO[bytes], tuple[int, ...], int]:
    # A stream and not the array: each process would hold the whole set in memory, up to 12 GB.
    return _member(path, name)


def _member(path: Path, name: str) -> tuple[IO[bytes], tuple[int, ...], int]:
    """An open array of the file, its shape, and the offset of its first pixel."""
    stream = zipfile.ZipFile(path).open(f"{name}.npy")  # noqa: SIM115 (it outlives the call)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        header = np.lib.format.read_array_header_2_0
    shape, by_column, dtype = header(stream)
    colour = len(shape) == 4 and shape[3] == 3
    if by_column or dtype != np.uint8 or not (len(shape) == 3 or colour):
        raise ValueError(f"{name} is {dtype} {shape}, allowed is uint8 (N, H, W) or (N, H, W, 3)")
    return stream, shape, stream.tell()


def _file(root: Path) -> Path:
    if root.is_file():
        return root
    found = sorted(root.glob("*.npz"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"data.root={root}: needs one .npz file, found {names}")
    return found[0]


def _labels(path: Path, given: list[NDArray[np.generic]]) -> tuple[bool, NDArray[np.float32]]:
    widths = {part.shape[1:] for part in given}
    if len(widths) != 1 or given[0].ndim != 2:
        raise UserError(f"{path}: labels have shapes {[part.shape for part in given]}")
    values = np.concatenate(given)  # (N, 1) or (N, L)
    if not len(values) or not np.issubdtype(values.dtype, np.integer) or int(values.min()) < 0:
        raise UserError(f"{path}: labels must be whole numbers from 0 on")
    if values.shape[1] == 1:
        classes = np.arange(int(values.max()) + 1)
        return False, (values == classes).astype(np.float32)
    if int(values.max()) > 1:
        raise UserError(f"{path}: labels of several findings must be 0 or 1")
    return True, values.astype(np.float32)
