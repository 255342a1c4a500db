"""One look for every picture of a run: colours, type, and how an image becomes a tile."""

import base64
import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageFont

from mediffusion_core.reporting.fonts import families, font_for

Images = NDArray[Any] | torch.Tensor

INK = "#1f2933"
MUTED = "#66727d"
FAINT = "#b3bcc4"
RULE = "#e3e7eb"
PAPER = "#ffffff"
BLUE = "#2f6690"
PALE_BLUE = "#a9c6dd"
OCHRE = "#d9a03f"
TERRACOTTA = "#b4532a"

COUNTS = LinearSegmentedColormap.from_list("counts", ["#f5f8fa", PALE_BLUE, BLUE, "#1b4263"])
DIFFERENCE = LinearSegmentedColormap.from_list(
    "difference", ["#173f5f", BLUE, PALE_BLUE, "#f8f8f6", "#e9b48c", TERRACOTTA, "#73290f"]
)
"""Darker than before is blue, brighter is terracotta; told apart with every colour vision."""

HEAT = LinearSegmentedColormap.from_list("heat", [PAPER, "#f6dfc4", OCHRE, TERRACOTTA, "#5c1a12"])

SMALLEST_TILE, LARGEST_TILE = 128, 256

TYPE: Mapping[str, Any] = {
    "font.family": families(),
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.parse_math": False,
}


def as_batch(images: Images) -> NDArray[np.float32]:
    """Checks a batch of images and clips it to [0, 1].

    Returns:
        (N, C, H, W) float32; NaN becomes black.

    Raises:
        ValueError: if the shape is not (N ≥ 1, 1 or 3, H, W).
    """
    raw = images.detach().cpu().float().numpy() if isinstance(images, torch.Tensor) else images
    batch = np.asarray(raw, dtype=np.float32)
    if batch.ndim != 4 or batch.shape[1] not in (1, 3) or batch.size == 0:
        raise ValueError(f"images have shape {batch.shape}, expected (N, 1 or 3, H, W) with N >= 1")
    return np.asarray(np.clip(np.nan_to_num(batch, nan=0.0), 0.0, 1.0), dtype=np.float32)


def tile_size(
    height: int, width: int, smallest: int = SMALLEST_TILE, largest: int = LARGEST_TILE
) -> tuple[int, int]:
    """Pixels, (width, height), at which an image is shown; the limits are of the shorter side."""
    shorter = min(height, width)
    scale = min(max(shorter, smallest), largest) / shorter
    return round(width * scale), round(height * scale)


def as_tile(image: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    """An image (C, H, W) in [0, 1] as RGB of `size` (width, height), resampled bicubically."""
    pixels = np.rint(np.asarray(image) * 255).astype(np.uint8).transpose(1, 2, 0)  # (H, W, C)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return picture.resize(size, Image.Resampling.BICUBIC).convert("RGB")


def as_png(image: Images, size: tuple[int, int]) -> str:
    """A PNG in base64 of one image (C, H, W), of `size` (width, height); grey where C is 1."""
    [pixels] = as_batch(image[None])
    written = io.BytesIO()
    tile = as_tile(pixels, size).convert("L" if len(pixels) == 1 else "RGB")
    tile.save(written, format="PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def typeface(points: int, bold: bool = False, text: str = "") -> ImageFont.FreeTypeFont:
    """The typeface of a text in pictures that are put together pixel by pixel."""
    return ImageFont.truetype(str(font_for(text, bold=bold)), points)


def house_type() -> AbstractContextManager[None]:
    """A context in which matplotlib draws with the type and the rules of the house."""
    return matplotlib.rc_context(cast(Any, dict(TYPE)))


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure in inches that belongs to no window and no global state."""
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=200, metadata={"Software": None})
