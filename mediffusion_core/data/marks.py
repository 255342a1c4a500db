"""Scanner marks burnt into images: drawn, found and removed.

A mark of a kind always stands at the same place, as a machine's overlay does. The places of the
kinds do not overlap. Images are (B, C, H, W) in [0, 1], masks booleans (H, W).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter
from torch import Tensor

from mediffusion_core.settings import MarkKind

BLACK, WHITE = 0.02, 0.95
"""Grey values of a mark's darkest and brightest pixels."""
FINENESS = 8
"""Samples of a pixel a side, for soft edges."""
MARGIN = 2
"""Pixels around a mark that count to its place: a decoder blurs edges."""
LEAST_FIT, LEAST_CONTRAST = 0.85, 0.4
"""Correlation with the mark's grey values, and their slope, from which on it is present."""


@dataclass(frozen=True)
class _Shape:
    """Rows of a small bitmap, `.:+#` from black to white, and its box in shares of the side."""

    bitmap: tuple[str, ...]
    rows: tuple[float, float]
    columns: tuple[float, float]


_LETTER = (
    ".......",
    ".####..",
    ".#...#.",
    ".#...#.",
    ".####..",
    ".#.#...",
    ".#..#..",
    ".#...#.",
    ".......",
)
_SHAPES: dict[MarkKind, _Shape] = {
    "letter": _Shape(_LETTER, (0.04, 0.26), (0.05, 0.22)),
    "border": _Shape((".:+#" * 4,), (0.95, 1.0), (0.0, 1.0)),
    "line": _Shape(("..........", ".##.#.##.#", ".........."), (0.02, 0.11), (0.38, 0.70)),
}
KINDS: tuple[MarkKind, ...] = tuple(_SHAPES)


@cache
def _drawing(kind: MarkKind, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Grey value of each pixel in [0, 1], and how much of it the mark covers; (size, size)."""
    shape = _SHAPES[kind]
    levels = np.array([[".:+#".index(one) / 3 for one in row] for row in shape.bitmap])
    down, across = _cells(size, shape.rows), _cells(size, shape.columns)
    inside = (down >= 0)[:, None] & (across >= 0)[None, :]
    fine = levels[
        (down * levels.shape[0]).astype(int)[:, None], (across * levels.shape[1]).astype(int)
    ]
    covered, light = (
        one.reshape(size, FINENESS, size, FINENESS).mean(axis=(1, 3)).astype(np.float32)
        for one in (inside, inside * (BLACK + fine * (WHITE - BLACK)))
    )
    return light / np.where(covered > 0, covered, 1), covered


def _cells(size: int, ends: tuple[float, float]) -> NDArray[np.float64]:
    """Place of each fine sample of an axis between two shares of it, 0 to 1; -0.01 outside."""
    at = (np.arange(size * FINENESS) + 0.5) / (size * FINENESS)
    first, last = ends
    return np.where((at >= first) & (at < last), (at - first) / (last - first), -0.01)


def mask(kind: MarkKind, size: int) -> NDArray[np.bool_]:
    """Pixels of a mark, (size, size)."""
    covered: NDArray[np.bool_] = _drawing(kind, size)[1] > 0
    return covered


def region(kind: MarkKind, size: int) -> NDArray[np.bool_]:
    """The place of a mark: its pixels and a margin, (size, size)."""
    widened: NDArray[np.bool_] = binary_dilation(
        mask(kind, size), np.ones((3, 3)), iterations=MARGIN
    )
    return widened


def pasted(images: Tensor, kind: MarkKind) -> Tensor:
    """The images with a mark; pixels that it does not cover are unchanged."""
    grey, covered = (torch.from_numpy(one) for one in _drawing(kind, images.shape[-1]))
    return torch.where(covered > 0, images + covered * (grey - images), images)


def planted(image: NDArray[np.uint8], kind: MarkKind) -> NDArray[np.uint8]:
    """A grey image (S, S) of bytes with a mark."""
    marked = pasted(torch.from_numpy(image)[None, None].float() / 255, kind)[0, 0]
    return np.where(mask(kind, len(image)), (marked * 255).round().byte().numpy(), image)


def removed(images: Tensor, kind: MarkKind) -> Tensor:
    """The images with a mark's pixels replaced by the weighted mean of the pixels around it."""
    size = images.shape[-1]
    gone = binary_dilation(mask(kind, size), np.ones((3, 3)))
    kept = (~gone).astype(np.float32)
    width = size / 24

    def spread(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        smooth: NDArray[np.float32] = gaussian_filter(
            pixels, (0, 0, width, width), mode="constant", truncate=6.0
        )
        return smooth

    fill = spread(images.numpy() * kept) / spread(np.broadcast_to(kept, (1, 1, size, size)))
    return torch.where(torch.from_numpy(gone), torch.from_numpy(fill), images)


def present(images: Tensor, kind: MarkKind) -> Tensor:
    """Which images have a mark, (B,): correlation with its grey values, and their contrast."""
    grey, covered = (torch.from_numpy(one) for one in _drawing(kind, images.shape[-1]))
    at = covered > 0.5
    shape, pixels = grey[at], images.mean(dim=1)[:, at]  # (P,), (B, P)
    shape, pixels = shape - shape.mean(), pixels - pixels.mean(dim=1, keepdim=True)
    along = pixels @ shape
    fit = along / (pixels.norm(dim=1) * shape.norm()).clamp(min=1e-12)
    found: Tensor = (fit > LEAST_FIT) & (along / shape.square().sum() > LEAST_CONTRAST)
    return found


def randomised(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images without their marks, and with each kind of mark on a random half of them.

    So no mark goes with any class.
    """
    for kind in KINDS:
        found = present(images, kind)
        if bool(found.any()):
            images = torch.where(_each(found), removed(images, kind), images)
        chosen = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(_each(chosen), pasted(images, kind), images)
    return images


def _each(chosen: Tensor) -> Tensor:
    """Which images are chosen (B,), to select among images (B, C, H, W)."""
    return chosen.reshape(-1, 1, 1, 1)
