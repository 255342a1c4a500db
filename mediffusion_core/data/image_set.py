"""A selection of a store's images with labels, read as they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Pixels(Protocol):
    """A store's images, as they lie there or as a scanner renders them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Images (B, H, W, C) at the given rows (B,)."""


@dataclass(frozen=True)
class ImageSet:
    """A selection of a store's images with their labels."""

    pixels: Pixels
    """The whole store (N, H, W, C), usually a memory map."""
    rows: NDArray[np.int64]
    """Which of the store's images these are, (n,)."""
    targets: Tensor
    """(n, classes) in {0, 1}; NaN where a label is missing or withheld."""

    def __len__(self) -> int:
        """How many images."""
        return len(self.rows)

    def take(self, chosen: Tensor) -> Tensor:
        """Images at the given positions (B,) of this set as (B, C, H, W) in [0, 1]."""
        return as_batch(self.pixels[self.rows[chosen.numpy()]])

    def subset(self, chosen: Tensor) -> "ImageSet":
        """The images at the given positions (m,), with their labels."""
        return ImageSet(self.pixels, self.rows[chosen.numpy()], self.targets[chosen])

    @property
    def labelled(self) -> Tensor:
        """Positions of the images with at least one known label, (m,)."""
        return labelled_positions(self.targets)

    @property
    def unlabelled(self) -> Tensor:
        """Positions of the images without any label, (u,)."""
        return unlabelled_positions(self.targets)


def as_batch(pixels: NDArray[np.uint8]) -> Tensor:
    """Images (B, H, W, C) of bytes as networks take them, (B, C, H, W) in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def joined(parts: Sequence[ImageSet]) -> ImageSet:
    """The images of several sets of one store, one set after the other."""
    rows = np.concatenate([part.rows for part in parts])
    return ImageSet(parts[0].pixels, rows, torch.cat([part.targets for part in parts]))


def labelled_positions(targets: Tensor) -> Tensor:
    """Rows of (n, classes) with at least one label that is not NaN, (m,)."""
    return (~targets.isnan()).any(dim=1).nonzero().flatten()


def unlabelled_positions(targets: Tensor) -> Tensor:
    """Rows of (n, classes) that are NaN throughout, (u,)."""
    return targets.isnan().all(dim=1).nonzero().flatten()
