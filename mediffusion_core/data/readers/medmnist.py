"""MedMNIST's two-dimensional sets as they are published (Yang et al. 2023, arXiv:2110.14795).

One `.npz` of version 2 or 3, of any size, with `{train,val,test}_{images,labels}`; the three parts
are joined, and stand in `splits`. The optional package `medmnist` knows what classes are called
and where files are published.
"""

import ast
import hashlib
import http.client
import importlib.util
import logging
import re
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.dataset import Source
from mediffusion_core.data.readers.tables import data_root
from mediffusion_core.data.regions import DAMAGED
from mediffusion_core.data.store.images import ImageError
from mediffusion_core.settings import DataSettings

PARTS = {"train": "train", "val": "validation", "test": "test"}
"""The file's name of a part, to that of `dataset.SPLITS`."""

FLAGS = (
    "pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist",
    "breastmnist", "bloodmnist", "tissuemnist", "organamnist", "organcmnist", "organsmnist",
)  # fmt: skip
PUBLISHED = re.compile(rf"({'|'.join(FLAGS)})(?:_(64|128|224))?\.npz")
"""Names of published files; one without a size holds images of 28 pixels a side."""

EXTRA = "fed-mediffusion[medmnist]"
TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""

logger = logging.getLogger(__name__)


def read(settings: DataSettings, seed: int) -> Source:
    """One MedMNIST file, `data.root` or the only `.npz` in it; each image is its own group.

    Labels (N, 1) are one class an image, ordinal ones too, which are classes in their order;
    labels (N, L) are L findings. Classes are called as `data.classes` or the package `medmnist`
    says, where it is installed and the file bears its published name, else "0", "1", ... A
    published file that `data.root` names and that does not exist is downloaded there.

    Raises:
        UserError: missing or damaged file, missing arrays, volumes instead of images, labels
            that are neither; a download that fails or needs the package.
    """
    if settings.root is not None and not settings.root.exists():
        published = PUBLISHED.fullmatch(settings.root.name)
        if published:
            download(published[1], int(published[2] or 28), settings.root.parent)
    path = _file(data_root(settings))
    given, shapes = _parts(path)
    multi_label, labels = _labels(path, given)
    classes = _classes(path, labels.shape[1], multi_label, settings.classes)
    # The last classes of a published set may have no image in a part of it.
    labels = np.pad(labels, ((0, 0), (0, len(classes) - labels.shape[1])))
    status = path.stat()
    ends = tuple(np.cumsum([shape[0] for shape in shapes]).tolist())
    counts = {part: shape[0] for part, shape in zip(PARTS, shapes, strict=True)}
    names = tuple(f"{part}-{index}" for part, count in counts.items() for index in range(count))
    return Source(
        name="medmnist",
        classes=classes,
        multi_label=multi_label,
        image_ids=names,
        labels=labels,
        groups=names,
        centres=None,
        load=partial(load_row, path, status.st_mtime_ns, ends),
        fingerprint=fingerprint(
            reader="medmnist",
            root=str(path),
            size=status.st_size,
            changed=status.st_mtime_ns,
            classes=classes,
        ),
        splits=tuple(PARTS[part] for part, count in counts.items() for _ in range(count)),
    )


def download(flag: str, size: int, folder: Path) -> Path:
    """Fetches one published file from where the package `medmnist` says, whole or not at all.

    Args:
        flag: one of `FLAGS`.
        size: side of its images in pixels: 28, 64, 128 or 224.
        folder: where the file goes, under its published name. Processes that ask for the same
            file at once wait for the one that fetches it.

    Returns:
        The file's path.

    Raises:
        UserError: missing package, missing folder or one that can't be written, no connection,
            wrong checksum.
    """
    suffix = "" if size == 28 else f"_{size}"
    path = folder / f"{flag}{suffix}.npz"
    about = _info().get(flag, {})
    url, checksum = about.get(f"url{suffix}"), about.get(f"MD5{suffix}")
    if url is None or checksum is None:
        raise UserError(f"data.root={path}: no such file; {EXTRA} is needed to download it")
    if not folder.is_dir():
        raise UserError(f"data.root={path}: no such folder to download to")
    try:
        with FileLock(f"{path}.lock"):
            if not path.exists():
                logger.info("downloading %s to %s", url, path)
                _fetch(url, checksum, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.root={path}: can't be downloaded from {url} ({reason})") from None
    return path


def load_row(path: Path, changed: int, ends: Sequence[int], index: int) -> NDArray[np.uint8]:
    """One image out of the compressed file; quick where indices rise from call to call.

    Raises:
        ImageError: where the compressed stream is damaged.
    """
    part = int(np.searchsorted(ends, index, side="right"))
    row = index - (ends[part - 1] if part else 0)
    try:
        stream, shape, start = _stream(path, changed, f"{tuple(PARTS)[part]}_images")
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


def _parts(path: Path) -> tuple[list[NDArray[np.generic]], list[tuple[int, ...]]]:
    """The labels of the three parts, and the shapes of their images."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            given = [np.asarray(arrays[f"{part}_labels"]) for part in PARTS]
        shapes = [_member(path, f"{part}_images")[1] for part in PARTS]
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.root={path}: not a MedMNIST file ({reason})") from None
    for part, shape, labels in zip(PARTS, shapes, given, strict=True):
        if labels.shape[:1] != shape[:1]:
            raise UserError(f"{path}: {part} has {shape[0]} images, {len(labels)} labels")
    return given, shapes


def _classes(
    path: Path, count: int, multi_label: bool, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Names of at least `count` classes: those given, else of the published set, else numbers."""
    published = PUBLISHED.fullmatch(path.name)
    known = _info().get(published[1], {}).get("label", {}) if published else {}
    names = given or tuple(known[str(index)] for index in range(len(known)))
    if names and (len(names) == count if multi_label else len(names) >= count):
        return names
    if given:
        raise UserError(f"{path}: the labels are of {count} classes, data.classes has {len(given)}")
    return tuple(str(index) for index in range(count))


def _info() -> Mapping[str, Mapping[str, Any]]:
    """The entry of each set in the package `medmnist`; empty if it is not installed.

    Its table is read rather than run: to import it needs torchvision, and makes a folder in the
    user's home.
    """
    package = importlib.util.find_spec("medmnist")
    for folder in (package and package.submodule_search_locations) or ():
        try:
            code = ast.parse((Path(folder) / "info.py").read_text(encoding="utf-8"))
            for node in code.body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INFO":
                    info: Mapping[str, Mapping[str, Any]] = ast.literal_eval(node.value)
                    return info
        except (OSError, ValueError, SyntaxError):
            continue
    return {}


def _fetch(url: str, checksum: str, path: Path) -> None:
    incomplete = path.with_name(f"{path.name}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with incomplete.open("wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            while block := answer.read(1 << 20):
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != checksum:
            raise ValueError(f"MD5 is {digest.hexdigest()}, should be {checksum}")
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)


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
