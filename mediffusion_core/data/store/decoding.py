"""Decodes the images of a source into one array on disk, on all cores where that is allowed."""

import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.store.images import ImageError, fit

CHUNK = 32
POOL_FROM = 4.0
"""Seconds of work below which starting processes costs more than they save."""

Progress = Callable[[int, int], None]
Bad = dict[int, str]
"""Index of an image that can't be read, to the reason."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoder:
    """Fills rows of `target`, a `.npy` file of uint8 (N, S, S, C), with decoded images."""

    load: Callable[[int], NDArray[np.uint8]]
    target: Path

    def rows(self, start: int) -> Bad:
        """Decodes the chunk that begins at an index; returns the images that can't be read."""
        images = np.load(self.target, mmap_mode="r+")  # (N, S, S, C)
        bad: Bad = {}
        for index in range(start, min(start + CHUNK, len(images))):
            bad |= self._decode(images, index)
        return bad

    def row(self, index: int) -> Bad:
        """Decodes one image; returns it where it can't be read."""
        return self._decode(np.load(self.target, mmap_mode="r+"), index)

    def _decode(self, images: NDArray[np.uint8], index: int) -> Bad:
        try:
            images[index] = fit(self.load(index), images.shape[1], images.shape[3])
        except ImageError as error:
            return {index: str(error)}
        return {}


def decode_all(
    decoder: Decoder,
    count: int,
    workers: int | None,
    progress: Progress | None,
    isolated: bool = False,
) -> Bad:
    """Decodes images 0 to `count`.

    Args:
        decoder: what fills the rows.
        count: N.
        workers: processes; None for one a core where that is quicker. A daemonic process may
            not have children and decodes on its own.
        progress: told (done, total) after every chunk.
        isolated: decode in other processes only, as some images may end the one they are read in.

    Returns:
        The images that can't be read, by index.
    """
    starts = list(range(0, count, CHUNK))
    bad: Bad = {}
    remaining = set(starts)

    def collect(results: Iterable[tuple[int, Bad]]) -> None:
        for start, found in results:
            bad.update(found)
            remaining.discard(start)
            if progress is not None:
                progress(min(count, (len(starts) - len(remaining)) * CHUNK), count)

    if isolated:
        workers = workers or os.cpu_count() or 1
    elif workers is None:
        began = time.perf_counter()
        collect((start, decoder.rows(start)) for start in starts[:1])
        expected = (time.perf_counter() - began) * len(remaining)
        workers = min(os.cpu_count() or 1, len(remaining)) if expected > POOL_FROM else 1
    if (isolated or workers > 1) and not multiprocessing.current_process().daemon:
        while remaining:
            try:
                collect(_in_pool(decoder, sorted(remaining), workers))
            except BrokenProcessPool:
                if not _pool_works(decoder):
                    logger.warning("processes for decoding could not run; going on in this one")
                    break
                collect(_until_a_crash(decoder, sorted(remaining), count))
    collect((start, decoder.rows(start)) for start in sorted(remaining))
    return dict(sorted(bad.items()))


def _pool_works(decoder: Decoder) -> bool:
    """Whether a process can be started at all: a script without its guard can't."""
    try:
        with _pool(decoder, 1) as pool:
            return pool.submit(_nothing).result() is None
    except BrokenProcessPool:
        return False


def _until_a_crash(decoder: Decoder, starts: list[int], count: int) -> Iterator[tuple[int, Bad]]:
    """Decodes image by image in one process, up to the chunk with an image that ends it.

    Codecs in C end their process on some broken files, and the pool does not say on which.
    """
    pool = _pool(decoder, 1)
    try:
        for start in starts:
            bad: Bad = {}
            crashed: Bad = {}
            for index in range(start, min(start + CHUNK, count)):
                try:
                    bad |= pool.submit(_row, index).result()
                except BrokenProcessPool:
                    crashed[index] = "the decoder crashed on it"
                    pool = _pool(decoder, 1)
            yield start, bad | crashed
            if crashed:
                return
    finally:
        pool.shutdown()


def _pool(decoder: Decoder, workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: the caller may hold threads, a GPU and the lock's file.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _start_worker, (decoder,))


def _in_pool(decoder: Decoder, starts: list[int], workers: int) -> Iterator[tuple[int, Bad]]:
    with _pool(decoder, workers) as pool:
        futures = {pool.submit(_rows, start): start for start in starts}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_decoder: Decoder


def _start_worker(decoder: Decoder) -> None:
    global _decoder
    _decoder = decoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A killed parent can't stop its pool, whose processes would wait for work forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _rows(start: int) -> Bad:
    return _decoder.rows(start)


def _row(index: int) -> Bad:
    return _decoder.row(index)


def _nothing() -> None:
    pass


def create_array(path: Path, shape: tuple[int, ...]) -> None:
    """Makes a `.npy` file of uint8 zeros.

    Raises:
        OSError: no room; later the full disk would end the process by a signal.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    array.flush()
    del array
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def copy_rows(source: Path, target: Path, keep: NDArray[np.int64]) -> None:
    """Copies some rows of one array file into a new one, in blocks of about 64 MB."""
    rows = np.load(source, mmap_mode="r")
    create_array(target, (len(keep), *rows.shape[1:]))
    kept = np.load(target, mmap_mode="r+")
    block = max(1, 2**26 // math.prod(rows.shape[1:]))
    for start in range(0, len(keep), block):
        kept[start : start + block] = rows[keep[start : start + block]]
    kept.flush()
