"""Counts of small groups, and the counts that would give them back, are suppressed at a site.

A site sends counts of images by several properties. Each property is a partition of the images into
cells, such as positive, negative and missing for one class. The number of all images is known, so
the counts of the cells that leave also give their rest.

1. In each partition cells of few patients are suppressed, and with them the smallest other cell.
2. Counts of several partitions may be combined: where each image has one class, all images minus
   those of the other classes are those of a suppressed class. With one row for each count that
   leaves, and one column for each combination of cells that occurs, such combinations are the row
   space. As long as it contains a combination of the rows of small cells, a partition gives way:
   first those with suppressed cells, then the one with the smallest count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Partition:
    """A property of N images: one of K cells for each image."""

    cells: NDArray[np.int64]
    """The cell of each image, (N,)."""
    shown: NDArray[np.bool_]
    """Whether the count of a cell leaves, (K,)."""


def shown_cells(presence: NDArray[np.bool_], minimum: int) -> NDArray[np.bool_]:
    """The cells of one partition whose counts may leave beside the number of all images.

    Empty cells are suppressed with small ones, so that suppression tells of no patient.

    Args:
        presence: Which of P patients are in which of K cells, (P, K).
        minimum: The least number of patients that a count may be of.

    Returns:
        (K,) bool.
    """
    sizes = presence.sum(axis=0)
    shown = np.asarray(sizes >= minimum)
    if not presence[:, ~shown].any():
        return np.ones_like(shown)
    shown[np.where(shown, sizes, len(presence) + 1).argmin()] = False
    return shown


def presence_of(
    cells: NDArray[np.int64], patients: NDArray[np.int64], count: int
) -> NDArray[np.bool_]:
    """Which patients have an image in which of `count` cells, (P, `count`).

    Args:
        cells: The cell of each image, (N,).
        patients: The number of each image's patient, from 0, (N,).
        count: K.
    """
    presence = np.zeros((int(patients.max(initial=-1)) + 1, count), dtype=np.bool_)
    presence[patients, cells] = True
    return presence


def give_way(
    partitions: Sequence[Partition],
    fixed: Sequence[Partition],
    patients: NDArray[np.int64],
    minimum: int,
) -> None:
    """Suppresses partitions as long as small counts follow from all counts that leave.

    Args:
        partitions: Those that give way, each suppressed by `shown_cells`; changed in place.
        fixed: Others whose counts leave too.
        patients: The number of each image's patient, (N,).
        minimum: As for `shown_cells`.
    """
    every = [*partitions, *fixed]
    sizes = [presence_of(one.cells, patients, len(one.shown)).sum(axis=0) for one in every]
    patterns = np.unique(np.stack([one.cells for one in every]), axis=1)  # (J, U)
    while _small_counts_follow(every, sizes, patterns, minimum):
        smallest = {
            (bool(one.shown.all()), int(size[one.shown & (size > 0)].min()), number)
            for number, (one, size) in enumerate(zip(every, sizes, strict=True))
            if number < len(partitions) and one.shown.any()
        }
        if not smallest:
            return
        *_, number = min(smallest)
        partitions[number].shown[:] = False


def _small_counts_follow(
    partitions: Sequence[Partition],
    sizes: Sequence[NDArray[np.int64]],
    patterns: NDArray[np.int64],
    minimum: int,
) -> bool:
    """Whether a combination of small counts follows from the counts that leave.

    The sum of a partition's suppressed counts always follows. Where all of them are small, as by
    `subgroups.suppressed`, one is left out here: it follows if, and only if, a combination of the
    others does.
    """
    leaving = [np.ones(patterns.shape[1])]
    small: list[NDArray[np.float64]] = []
    for one, size, pattern in zip(partitions, sizes, patterns, strict=True):
        inside = (pattern == np.arange(len(one.shown))[:, None]).astype(float)  # (K, U)
        hidden = np.flatnonzero(~one.shown & (size > 0))
        few = [cell for cell in hidden if size[cell] < minimum]
        leaving += list(inside[one.shown])
        small += list(inside[few[1:] if len(few) == len(hidden) else few])
    return _rank(leaving) + _rank(small) > _rank([*leaving, *small])


def _rank(rows: Sequence[NDArray[np.float64]]) -> int:
    return int(np.linalg.matrix_rank(np.stack(rows))) if rows else 0
