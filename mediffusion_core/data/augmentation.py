"""Random views of images, by kind of image.

Dermoscopic images have no preferred orientation. Radiographs do: a mirrored chest is another
diagnosis. kornia has the same operations, but draws from PyTorch's global generator, in another
order than the published runs.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mediffusion_core.data import marks


@dataclass(frozen=True)
class Ranges:
    """Largest changes of a view."""

    rotation: float
    """Largest rotation in degrees, either way."""
    zoom: tuple[float, float]
    """Smallest and largest magnification."""
    shift: float
    """Largest shift as a fraction of the side."""
    contrast: float
    """Largest relative change of contrast and absolute change of brightness."""
    turns_and_flips: bool
    """Whether all eight quarter turns and mirror images are equally likely."""
    saturation: float = 0.0
    """Largest relative change of colours' distance from grey."""
    channel_gain: float = 0.0
    """Largest relative change of each channel on its own, which shifts the hue."""
    random_marks: bool = False
    """Whether scanner marks are replaced by random ones."""


_RADIOGRAPH = Ranges(6.0, (0.93, 1.1), 0.05, 0.1, turns_and_flips=False)
RANGES = {
    "radiograph": _RADIOGRAPH,
    "radiograph_marks": replace(_RADIOGRAPH, random_marks=True),
    "dermoscopy": Ranges(0.0, (1.0, 1.25), 0.06, 0.08, turns_and_flips=True),
    # Light, cameras and skin differ more between centres than within one.
    "dermoscopy_colour": Ranges(
        0.0, (0.7, 1.4), 0.06, 0.3, turns_and_flips=True, saturation=0.3, channel_gain=0.1
    ),
}


def turns_and_flips(kind: str) -> bool:
    """Whether a kind's views include quarter turns and mirror images; those of "none" do not."""
    return kind in RANGES and RANGES[kind].turns_and_flips


def has_random_marks(kind: str) -> bool:
    """Whether a kind's views have random scanner marks in place of their own."""
    return kind in RANGES and RANGES[kind].random_marks


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """One random view of each image.

    Args:
        images: (B, C, H, W) in [0, 1].
        kind: A key of `RANGES`, or "none".
        generator: Of all draws.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    if kind == "none":
        return images
    ranges = RANGES[kind]
    if ranges.random_marks:
        images = marks.randomised(images, generator)
    moved = F.grid_sample(
        images,
        F.affine_grid(_affine(len(images), ranges, generator), list(images.shape), False),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
    if ranges.turns_and_flips:
        moved = turn_and_flip(moved, generator)
    if ranges.saturation or ranges.channel_gain:
        moved = _recolour(moved, ranges, generator)
    gain = 1 + _uniform(len(images), ranges.contrast, generator).reshape(-1, 1, 1, 1)
    offset = _uniform(len(images), ranges.contrast / 2, generator).reshape(-1, 1, 1, 1)
    return ((moved - 0.5) * gain + 0.5 + offset).clamp(0, 1)


def _recolour(images: Tensor, ranges: Ranges, generator: torch.Generator) -> Tensor:
    count, channels = images.shape[:2]
    gains = 1 + _uniform(count * channels, ranges.channel_gain, generator)
    images = images * gains.reshape(count, channels, 1, 1)
    vividness = 1 + _uniform(count, ranges.saturation, generator).reshape(-1, 1, 1, 1)
    grey = images.mean(dim=1, keepdim=True)
    return grey + (images - grey) * vividness


def _uniform(count: int, limit: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) * 2 - 1) * limit


def _affine(count: int, ranges: Ranges, generator: torch.Generator) -> Tensor:
    angle = _uniform(count, math.radians(ranges.rotation), generator)
    low, high = ranges.zoom
    scale = 1 / (low + (high - low) * torch.rand(count, generator=generator))
    shift = torch.stack([_uniform(count, 2 * ranges.shift, generator) for _ in range(2)], dim=1)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], dim=1)
    return rows.reshape(count, 2, 3)


def cutout(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Sets a random square of each of the latents (B, c, h, w) to 0, their mean (arXiv 1708.04552).

    The side is at most half of the latent's. The centre is anywhere, so that a part of the square
    may lie outside.
    """
    count, _, height, width = latents.shape
    half = torch.rand(count, 1, generator=generator) * min(height, width) / 4
    rows, columns = (
        (torch.rand(count, 1, generator=generator) * side - torch.arange(side) - 0.5).abs() < half
        for side in (height, width)
    )  # (B, h), (B, w)
    square = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, h, w)
    return latents.masked_fill(square, 0.0)


def turn_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turns and mirrors each of the images or latents (B, C, S, S), in one of eight random ways."""
    turns = torch.randint(0, 4, (len(images),), generator=generator)
    flips = torch.rand(len(images), generator=generator) < 0.5
    return turned_and_flipped(images, turns + 4 * flips)


def turned_and_flipped(images: Tensor, ways: Tensor) -> Tensor:
    """Turns each of the images or latents (B, C, S, S) by ways mod 4 quarters; mirrors from 4 on.

    Args:
        images: On any device.
        ways: From 0 to 7, (B,).
    """
    turned = images.clone()
    for quarters in range(1, 4):
        chosen = ways % 4 == quarters
        turned[chosen] = images[chosen].rot90(quarters, (2, 3))
    flips = ways >= 4
    turned[flips] = turned[flips].flip(3)
    return turned
