"""The prepared store: a data set decoded once, resized, and opened as memory maps.

Each column of the data set is one file, so that a store of a million images opens at once and
takes no memory. A store's folder is named by everything that its content depends on. It is built
beside its place and renamed, so whatever stands under that name is whole.
"""

import csv
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.dataset import Source
from mediffusion_core.data.store.decoding import Decoder, copy_rows, create_array, decode_all
from mediffusion_core.data.store.duplicates import Pairs, find_duplicates, units
from mediffusion_core.data.store.string_array import Names
from mediffusion_core.settings import DataSettings

FORMAT = 3
IMAGES, BAD, DESCRIPTION = "images.npy", "bad_images.csv", "store.json"


@dataclass(frozen=True)
class Store:
    """A prepared data set; N images of side S with C channels, K classes.

    Attributes:
        images: uint8 memory map, (N, S, S, C).
        labels: float32 memory map, (N, K), 0 or 1, nan where the label is missing.
        groups: N names of the unit of privacy (patient, lesion).
        units: int64, (N,), what no split may separate: groups, joined where an image of one
            duplicates an image of another (`data.store.duplicates`).
        centres: natural site of each image, None where there is none.
        splits: official split of each image, None where there is none.
        image_ids: N names.
        classes: K names.
        multi_label: whether an image may have several classes, or none.
        duplicates: int64, (P, 2), pairs of images that are one image, exactly or nearly.
        bad: (name, reason) of the images that could not be read and are left out.
        place: the folder that it stands in.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.float32]
    groups: Sequence[str]
    units: NDArray[np.int64]
    centres: Sequence[str] | None
    splits: Sequence[str] | None
    image_ids: Sequence[str]
    classes: tuple[str, ...]
    multi_label: bool
    duplicates: Pairs
    bad: tuple[tuple[str, str], ...]
    place: Path


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
    store = open_store(place)
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
        decoder = Decoder(source.load, building / IMAGES)
        bad = decode_all(decoder, count, workers, progress, source.isolated)
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
        kept = np.setdiff1d(np.arange(count), list(bad))
        if bad:
            (building / IMAGES).rename(building / "all.npy")
            copy_rows(building / "all.npy", building / IMAGES, kept)
            (building / "all.npy").unlink()
        _write_columns(building, source, kept)
        building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)


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


def _write_columns(building: Path, source: Source, kept: NDArray[np.int64]) -> None:
    def text(values: Sequence[str]) -> NDArray[np.bytes_]:
        return Names.of(values[index] for index in kept.tolist()).encoded

    duplicates = find_duplicates(np.load(building / IMAGES, mmap_mode="r"))
    groups = text(source.groups)
    numbers = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    columns: dict[str, NDArray[Any]] = {
        "image_ids": text(source.image_ids),
        "labels": source.labels[kept],
        "groups": groups,
        "units": units(numbers, duplicates),
        "duplicates": duplicates,
    }
    if source.centres is not None:
        columns["centres"] = text(source.centres)
    if source.splits is not None:
        columns["splits"] = text(source.splits)
    for name, values in columns.items():
        np.save(building / f"{name}.npy", values)
    description = {"classes": source.classes, "multi_label": source.multi_label}
    (building / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def open_store(place: Path) -> Store:
    """Opens a store's folder as memory maps.

    Raises:
        UserError: if it is damaged.
    """

    def column(name: str) -> NDArray[Any]:
        mapped: NDArray[Any] = np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return mapped

    def names(name: str) -> Names | None:
        return Names(column(name)) if (place / f"{name}.npy").is_file() else None

    try:
        description = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))
        images, ids, groups = column("images"), Names(column("image_ids")), Names(column("groups"))
        if not len(images) == len(ids) == len(groups):
            raise ValueError("columns and images differ in length")
        return Store(
            images=images,
            labels=column("labels"),
            groups=groups,
            units=column("units"),
            centres=names("centres"),
            splits=names("splits"),
            image_ids=ids,
            classes=tuple(description["classes"]),
            multi_label=bool(description["multi_label"]),
            duplicates=column("duplicates"),
            bad=_read_bad(place / BAD),
            place=place,
        )
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise UserError(f"the store {place} is damaged ({error}); delete it") from None


def _read_bad(path: Path) -> tuple[tuple[str, str], ...]:
    with path.open(newline="", encoding="utf-8") as file:
        return tuple((name, reason) for name, reason in list(csv.reader(file))[1:])
