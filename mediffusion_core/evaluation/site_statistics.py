"""Statistics of a site's images before a run: counts by label, sex and age, and intensities.

Without differential privacy they are exact counts, and small ones are suppressed. With it each unit
(a patient, a lesion or an image) adds one vector to the sums, and the sums have noise. The vector
consists of parts with norm 1 at most, each the mean over the unit's images:

- whether an image is labelled, one part;
- for each class whether it is positive, negative or missing, C parts;
- its sex, and its age, two parts;
- the share of its pixels in each bin of intensity, one part for each of c channels.

The sums are therefore one call of the Gaussian mechanism with sensitivity √(3 + C + c).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.data.attributes import AGE, ATTRIBUTES, SEX
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.subgroups import SUBGROUPS, members, suppressed
from mediffusion_core.evaluation.suppression import (
    Partition,
    give_way,
    presence_of,
    shown_cells,
)
from mediffusion_core.privacy.dp_sgd.randomness import normal

BINS = 32
"""Bins of equal width of the intensities from 0 to 1, eight of the 256 levels in each."""
STATES = ("positive", "negative", "missing")
"""States of a label."""
SUPPRESSED = -1
"""In place of a count that may not leave."""
UNITS = ("image", "lesion", "patient")
"""Units that a data set can name; their position travels."""
TOGETHER = 256
"""Images that are read at once."""
CERTAIN = 3.0
"""Standard deviations from which on a sum is taken to be more than noise."""

Read = Callable[[int, int], None]
"""Told (done, total)."""


@dataclass(frozen=True)
class DescribedImages:
    """The images of a site that are described; N images.

    Attributes:
        images: With the labels that the run leaves them.
        patients: Patient or lesion of each image, N names.
        attributes: By attribute, the subgroup of each image.
    """

    images: ImageSet
    patients: tuple[str, ...]
    attributes: Mapping[str, NDArray[np.str_]]

    def subset(self, chosen: Tensor) -> "DescribedImages":
        """The images at the given positions (m,)."""
        positions = chosen.numpy()
        return DescribedImages(
            self.images.subset(chosen),
            tuple(self.patients[one] for one in positions),
            {name: given[positions] for name, given in self.attributes.items()},
        )


def layout(classes: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the statistics, exact or noised."""
    return {
        "labelled": (2,),
        "labels": (classes, len(STATES)),
        "subgroups": (len(SUBGROUPS),),
        "histogram": (channels, BINS),
    }


def exact_statistics(
    described: DescribedImages, minimum: int, progress: Read | None = None
) -> dict[str, Tensor]:
    """Counts of a site's images, without those of small groups.

    Args:
        described: At least `minimum` patients.
        minimum: The least number of patients that a count may be of.
        progress: Told how many images have been read.

    Returns:
        The arrays of `layout`, int64, `SUPPRESSED` where a count may not leave: images by whether
        they are `labelled` or not, by state of each of their `labels`, by `subgroups` of
        `SUBGROUPS`; and the `histogram`, pixels by bin.
    """
    images = described.images
    histograms = intensity_histograms(images, progress)  # (N, c, BINS)
    states, labelled = _states(images.targets), _labelled(images.targets)
    numbers = np.unique(np.array(described.patients), return_inverse=True)[1]
    partitions = [_partition(labelled, 2, numbers, minimum)]
    partitions += [_partition(one, len(STATES), numbers, minimum) for one in states.T]
    hidden = suppressed(described.attributes, described.patients, minimum).numpy()
    give_way(partitions, _attributes(described, hidden), numbers, minimum)
    inside = members(described.attributes, len(images)).sum(dim=1)  # (G,)
    counts = [_counts(one) for one in partitions]
    return {
        "labelled": counts[0],
        "labels": torch.stack(counts[1:]),
        "subgroups": inside.masked_fill(torch.from_numpy(hidden), SUPPRESSED),
        "histogram": torch.stack(
            [_shown_bins(one, numbers, minimum) for one in histograms.transpose(1, 0, 2)]
        ),
    }


def unit_sums(
    described: DescribedImages, units: Sequence[str], progress: Read | None = None
) -> dict[str, Tensor]:
    """Sums over units of the means over their images, without noise.

    One unit more or less changes them by at most `sensitivity` in norm.

    Args:
        described: The images; may be none.
        units: The privacy unit of each image.
        progress: Told how many images have been read.

    Returns:
        The arrays of `layout`, float64.
    """
    images = described.images
    _, numbers, each = np.unique(np.array(units), return_inverse=True, return_counts=True)
    weights = torch.from_numpy(1 / each[numbers]) if len(units) else torch.zeros(0).double()
    states = torch.from_numpy(_states(images.targets))  # (N, C)
    labelled = torch.from_numpy(_labelled(images.targets))  # (N,)
    histograms = torch.from_numpy(intensity_histograms(images, progress)).double()
    shares = histograms / max(1, math.prod(images.pixels.shape[1:3]))  # (N, c, BINS)
    one_of = [(states == state).double() for state in range(len(STATES))]
    return {
        "labelled": torch.stack([weights @ (labelled == one).double() for one in range(2)]),
        "labels": torch.stack([weights @ one for one in one_of], dim=-1),
        "subgroups": members(described.attributes, len(images)).double() @ weights,
        "histogram": torch.tensordot(weights, shares, dims=1),
    }


def sensitivity(classes: int, channels: int) -> float:
    """The largest change of `unit_sums` by one unit, in norm: √(3 + C + c)."""
    return float((3 + classes + channels) ** 0.5)


def noised(sums: Mapping[str, Tensor], noise_multiplier: float) -> dict[str, Tensor]:
    """Sums with Gaussian noise of `noise_multiplier` times `sensitivity`, in single precision."""
    deviation = noise_multiplier * sensitivity(len(sums["labels"]), len(sums["histogram"]))
    # Rounded, since the pattern of the noise's last bits may tell the sum (`randomness.normal`).
    return {name: (value + deviation * normal(value.shape)).float() for name, value in sums.items()}


def intensity_histograms(images: ImageSet, progress: Read | None = None) -> NDArray[np.int64]:
    """Pixels of each image by channel and bin, (N, c, BINS)."""
    count, channels = len(images), images.pixels.shape[3]
    found = np.zeros((count, channels, BINS), dtype=np.int64)
    for start in range(0, count, TOGETHER):
        pixels = images.pixels[images.rows[start : start + TOGETHER]]  # (B, H, W, c)
        bins = pixels // (256 // BINS)
        flat = bins.transpose(0, 3, 1, 2).reshape(len(pixels) * channels, -1).astype(np.int64)
        flat += BINS * np.arange(len(flat))[:, None]
        counted = np.bincount(flat.ravel(), minlength=len(flat) * BINS)
        found[start : start + len(pixels)] = counted.reshape(len(pixels), channels, BINS)
        if progress is not None:
            progress(start + len(pixels), count)
    return found


def _states(targets: Tensor) -> NDArray[np.int64]:
    """The state of each label, (N, C), as a position in `STATES`."""
    labels = targets.numpy()
    return np.where(np.isnan(labels), 2, np.where(labels == 1, 0, 1)).astype(np.int64)


def _labelled(targets: Tensor) -> NDArray[np.int64]:
    """0 for an image with a known label, 1 for one without, (N,)."""
    return targets.isnan().all(dim=1).long().numpy()


def _partition(
    cells: NDArray[np.int64], count: int, patients: NDArray[np.int64], minimum: int
) -> Partition:
    return Partition(cells, shown_cells(presence_of(cells, patients, count), minimum))


def _attributes(described: DescribedImages, hidden: NDArray[np.bool_]) -> list[Partition]:
    """Sex and age, each with one more cell for unknown, whose count does not leave."""
    partitions = []
    for attribute in (SEX, AGE):
        subgroups = ATTRIBUTES[attribute]
        given = described.attributes.get(attribute, np.zeros(len(described.patients), "U1"))
        cells = np.full(len(given), len(subgroups), dtype=np.int64)
        for number, subgroup in enumerate(subgroups):
            cells[given == subgroup] = number
        own = [gone for (name, _), gone in zip(SUBGROUPS, hidden, strict=True) if name == attribute]
        partitions.append(Partition(cells, ~np.array([*own, True])))
    return partitions


def _counts(partition: Partition) -> Tensor:
    counts = np.bincount(partition.cells, minlength=len(partition.shown))
    return torch.from_numpy(np.where(partition.shown, counts, SUPPRESSED))


def _shown_bins(histograms: NDArray[np.int64], patients: NDArray[np.int64], minimum: int) -> Tensor:
    """The sum over images of histograms (N, BINS), without bins with pixels of few patients."""
    presence = np.zeros((int(patients.max()) + 1, BINS), dtype=np.bool_)
    np.logical_or.at(presence, patients, histograms > 0)
    shown = shown_cells(presence, minimum)
    return torch.from_numpy(np.where(shown, histograms.sum(axis=0), SUPPRESSED))


def moments(histogram: Tensor, noise: float = 0.0) -> tuple[float, float]:
    """Mean and standard deviation of intensities in [0, 1], each at the middle of its bin.

    Args:
        histogram: (BINS,).
        noise: Standard deviation of the noise in each bin.

    Returns:
        NaN where the bins are empty, or may be noise alone.
    """
    weights = histogram.double()
    if float(weights.sum()) <= CERTAIN * noise * BINS**0.5:
        return math.nan, math.nan
    width = 256 // BINS
    middles = (width * torch.arange(BINS).double() + (width - 1) / 2) / 255
    mean = float(weights @ middles / weights.sum())
    square = float(weights @ middles.square() / weights.sum())
    return mean, math.sqrt(square - mean**2) if square >= mean**2 else math.nan
