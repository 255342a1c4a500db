"""The return value of every reader: a description of a data set, its images still on disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.checks.check_result import CheckResult
from mediffusion_core.data.regions import Regions

SPLITS = ("train", "validation", "test")
LONGEST_NAME = 100
"""Bytes that the name of a site may have."""


@dataclass(frozen=True)
class Move:
    """An image whose lesion stands in several centres and was given whole to another one."""

    image_id: str
    group: str
    given: str
    centre: str


@dataclass(frozen=True)
class UnitNames:
    """Unit that the names of a data set's groups name, and the key of these names."""

    unit: Literal["patient", "lesion", "image"] = "image"
    """The largest unit that is named for every image."""
    key: str = ""
    """Digest of the key of the names, where they are pseudonyms; empty for the data's own names."""


@dataclass(frozen=True)
class Source:
    """A data set as its reader describes it; N images, C classes.

    Attributes:
        name: the reader's name, as in `data.source`.
        classes: C class names.
        multi_label: whether an image may have several classes, or none.
        image_ids: N distinct names.
        labels: (N, C), 0 or 1, nan where the label is missing.
        groups: N names of the unit that privacy and splits are about: patient or lesion.
        names: the unit that these name; without patients and lesions each image is a group.
        centres: the natural site of each image, None where there is none. A group never stands
            in two centres.
        load: index to uint8 image (H, W) or (H, W, 3). Picklable, since images are decoded in
            other processes. Raises `ImageError` for an image that can't be read.
        fingerprint: changes when table, files, root or the reader's parameters change.
        moves: the images that stand in another centre than the table gives.
        splits: the official split of each image, one of `SPLITS`; None where there is none. A
            group never stands in two of them.
        regions: index and finding to bool (H, W) of the image as published, true where it lies
            (boxes filled in), with None for the finding where any lies; a lesion's mask is of
            whatever it is. None for an image without. Picklable, as `load`.
        notes: what its reader has to say: files that it does not read, cells that it takes for
            something else. They name no patient.
        attributes: by attribute of `data.attributes`, the subgroup of each image.
        isolated: whether `load` may end its process on a broken file, as some codecs in C do.

    Raises:
        ValueError: where the parts do not fit together, which is the reader's mistake.
        UserError: for a centre whose name can't be that of a file.
    """

    name: str
    classes: tuple[str, ...]
    multi_label: bool
    image_ids: tuple[str, ...]
    labels: NDArray[np.float32]
    groups: tuple[str, ...]
    centres: tuple[str, ...] | None
    load: Callable[[int], NDArray[np.uint8]]
    fingerprint: str
    moves: tuple[Move, ...] = ()
    splits: tuple[str, ...] | None = None
    regions: Regions | None = None
    notes: tuple[CheckResult, ...] = ()
    isolated: bool = False
    names: UnitNames = UnitNames()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that the parts fit together."""
        count = len(self.image_ids)
        if self.labels.shape != (count, len(self.classes)):
            raise ValueError(f"{self.name}: labels have shape {self.labels.shape}")
        if len(self.groups) != count or len(set(self.image_ids)) != count:
            raise ValueError(f"{self.name}: groups or image names do not fit {count} images")
        if any(len(given) != count for given in self.attributes.values()):
            raise ValueError(f"{self.name}: attributes do not fit {count} images")
        for what, given in (("centre", self.centres), ("split", self.splits)):
            if given is None:
                continue
            if len(given) != count:
                raise ValueError(f"{self.name}: {len(given)} {what}s for {count} images")
            if first_shared(self.groups, given):
                raise ValueError(f"{self.name}: a group stands in two {what}s")
        for centre in sorted(set(self.centres or ())):
            _refuse_path(centre)
        if not set(self.splits or ()) <= set(SPLITS):
            raise ValueError(f"{self.name}: splits are {sorted(set(self.splits or ()))}")


def _refuse_path(site: str) -> None:
    """A site's name names its folder and its manifest, which must not lie elsewhere."""
    short = 0 < len(site.encode("utf-8", "surrogateescape")) <= LONGEST_NAME
    if not short or site.startswith(".") or not site.isprintable() or set("/\\") & set(site):
        raise UserError(
            f"site {site!r} can't name a file; allowed are up to {LONGEST_NAME} bytes without "
            "slashes and without a dot at the start"
        )


def first_shared(groups: Sequence[str], places: Sequence[str]) -> tuple[int, int] | None:
    """The first image of a group that stands in another place than the group's first image.

    Args:
        groups: N patients or lesions.
        places: N splits or sites.

    Returns:
        Indices of the group's first image and of that image; None where every group has one place.
    """
    first: dict[str, int] = {}
    for index, (group, place) in enumerate(zip(groups, places, strict=True)):
        other = first.setdefault(group, index)
        if places[other] != place:
            return other, index
    return None
