"""The prepared store: a data set decoded once, resized, and opened as a memory map.

A store's folder is named by everything that its content depends on. It is built beside its place
and renamed, so whatever stands under that name is whole.
"""

import csv
import multiprocessing
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mediffusion_core.data.contract import Source, fingerprint
from mediffusion_core.data.decoding import Bad, Decoder, copy_rows, create_array, decode_all
from mediffusion_core.errors import UserError
from mediffusion_core.settings import DataSettings

FORMAT = 1
IMAGES, MANIFEST, BAD = "images.npy", "manifest.npz", "bad_images.csv"


@dataclass(frozen=True)
class Store:
    """A prepared data set; N images of side S with C channels, K classes.

    Attributes:
        images: uint8 memory map, (N, S, S, C).
        labels: float32, (N, K), 0 or 1, nan where the label is missing.
        groups: N names of the unit of privacy and splits (patient, lesion).
        centres: natural site of each image, None where there is none.
        image_ids: N names.
        classes: K names.
        multi_label: whether an image may have several classes, or none.
        bad: (name, reason) of the images that could not be read and are left out.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.float32]
    groups: tuple[str, ...]
    centres: tuple[str, ...] | None
    image_ids: tuple[str, ...]
    classes: tuple[str, ...]
    multi_label: bool
    bad: tuple[tuple[str, str], ...]


def default_store_folder() -> Path:
    """`$FED_MEDIFFUSION_STORE`, else `fed-mediffusion` in the user's cache folder."""
    given = os.environ.get("FED_MEDIFFUSION_STORE")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "fed-mediffusion"


def prepare(
    source: Source,
    settings: DataSettings,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Store:
    """Opens the store of a source, and builds it first where it does not stand yet.

    Several processes may call this at once: one builds, the others wait. A process killed on
    the way leaves nothing that the next call would take for a store.

    Args:
        source: what a reader returned.
        settings: image size, channels and the largest share of bad images.
        folder: cache of stores, made where missing.
        progress: told (done, total) while images are decoded.
        workers: processes that decode; None for one a core.

    Raises:
        UserError: more bad images than `data.max_bad_fraction`; a folder that can't be written
            or has no room; a damaged store.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A script without this guard is run again by every process it starts; here it would
        # wait for the lock that its own parent holds.
        raise RuntimeError("call prepare under `if __name__ == '__main__':`")
    key = fingerprint(
        source=source.fingerprint,
        image_size=settings.image_size,
        channels=settings.channels,
        format=FORMAT,
    )
    place = folder / f"{source.name}-{settings.image_size}-{key[:16]}"
    if not place.is_dir():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{place}.lock"):
                if not place.is_dir():
                    _build(source, settings, place, progress, workers)
        except OSError as error:
            raise UserError(f"data.store={folder}: {error.strerror or error}") from None
    store = _open(place)
    _refuse_many_bad(store.bad, len(store.image_ids), settings, place / BAD)
    return store


def _build(
    source: Source,
    settings: DataSettings,
    place: Path,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> None:
    for abandoned in place.parent.glob(f"{place.name}.building-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f"{place.name}.building-", dir=place.parent))
    try:
        count = len(source.image_ids)
        shape = (settings.image_size, settings.image_size, settings.channels)
        create_array(building / IMAGES, (count, *shape))
        bad = decode_all(Decoder(source.load, building / IMAGES), count, workers, progress)
        listed = tuple((source.image_ids[index], reason) for index, reason in bad.items())
        failed = place.with_name(f"{place.name}.failed")
        shutil.rmtree(failed, ignore_errors=True)
        try:
            _refuse_many_bad(listed, count - len(bad), settings, failed / BAD)
        except UserError:
            failed.mkdir()
            _write_bad(failed / BAD, listed)
            raise
        _write_bad(building / BAD, listed)
        _write_manifest(building / MANIFEST, source, bad)
        if bad:
            kept = np.setdiff1d(np.arange(count), list(bad))
            (building / IMAGES).rename(building / "all.npy")
            copy_rows(building / "all.npy", building / IMAGES, kept)
            (building / "all.npy").unlink()
        building.chmod(0o777 & ~_umask())
        building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refuse_many_bad(
    bad: tuple[tuple[str, str], ...], good: int, settings: DataSettings, listed: Path
) -> None:
    total = good + len(bad)
    if bad and (not good or len(bad) / total > settings.max_bad_fraction):
        name, reason = bad[0]
        raise UserError(
            f"{len(bad)} of {total} images can't be read, the first is {name} ({reason}); "
            f"data.max_bad_fraction={settings.max_bad_fraction} allows fewer; all: {listed}"
        )


def _write_bad(path: Path, bad: tuple[tuple[str, str], ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "reason"), *bad])


def _write_manifest(path: Path, source: Source, bad: Bad) -> None:
    kept = [index for index in range(len(source.image_ids)) if index not in bad]

    def text(values: tuple[str, ...]) -> NDArray[np.str_]:
        return np.array([values[index] for index in kept], dtype=np.str_)

    np.savez(
        path,
        image_ids=text(source.image_ids),
        labels=source.labels[kept],
        groups=text(source.groups),
        centres=text(source.centres or ("",) * len(source.image_ids)),
        has_centres=source.centres is not None,
        classes=np.array(source.classes, dtype=np.str_),
        multi_label=source.multi_label,
        bad_ids=np.array([source.image_ids[index] for index in bad], dtype=np.str_),
        bad_reasons=np.array(list(bad.values()), dtype=np.str_),
    )


def _open(place: Path) -> Store:
    try:
        with np.load(place / MANIFEST, allow_pickle=False) as manifest:
            part = {name: manifest[name] for name in manifest.files}
        images = np.load(place / IMAGES, mmap_mode="r")
        if len(images) != len(part["image_ids"]):
            raise ValueError("manifest and images differ in length")
        return Store(
            images=images,
            labels=part["labels"],
            groups=tuple(part["groups"].tolist()),
            centres=tuple(part["centres"].tolist()) if part["has_centres"] else None,
            image_ids=tuple(part["image_ids"].tolist()),
            classes=tuple(part["classes"].tolist()),
            multi_label=bool(part["multi_label"]),
            bad=tuple(zip(part["bad_ids"].tolist(), part["bad_reasons"].tolist(), strict=True)),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"the store {place} is damaged ({error}); delete it") from None
