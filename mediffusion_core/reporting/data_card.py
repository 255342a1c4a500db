"""The data card: one HTML page on what the sites hold, readable offline."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from mediffusion_core.data.checks.inspection import inspect, overlaps
from mediffusion_core.data.dataset import Source
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.store.images import ImageError
from mediffusion_core.reporting.data_card_page import PAGE
from mediffusion_core.reporting.pages import render_page
from mediffusion_core.settings import Settings

SHOWN_A_SITE = 16
SHOWN_DUPLICATES = 12
SHOWN_REGIONS = 16
_TILE, _INSIDE = 96, 94
_OUTLINE = (255, 214, 10)


def write_data_card(
    dataset: FederatedDataset, source: Source, settings: Settings, path: Path
) -> Path:
    """Writes the card of a partitioned data set.

    It shows the counts by site, split and class, how often classes occur together, duplicates,
    the overlaps between splits (none, or the card says so in red), what `inspect` found, and a
    sheet of each site's images; where the source knows the regions of findings, some images with
    these marked. It names images and no patient.

    Returns:
        The path of the page.
    """
    store = dataset.store
    page = render_page(
        PAGE,
        source=settings.data.source,
        facts=_facts(dataset, settings),
        findings=inspect(dataset),
        overlaps=overlaps(dataset),
        classes=store.classes,
        sites=[_site(dataset, number) for number in range(len(dataset.clients))],
        together=_together(store.labels, store.classes),
        duplicates=[
            (store.image_ids[one], store.image_ids[other], _sheet(store.images[[one, other]], 2))
            for one, other in store.duplicates[:SHOWN_DUPLICATES]
        ],
        num_duplicates=len(store.duplicates),
        regions=_regions(source),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _facts(dataset: FederatedDataset, settings: Settings) -> list[tuple[str, str]]:
    store = dataset.store
    side, channels = store.images.shape[1], store.images.shape[3]
    return [
        ("images", f"{len(store.images):,}"),
        ("left out as unreadable", f"{len(store.bad):,}"),
        ("patients or lesions", f"{len(set(store.groups)):,}"),
        ("prepared as", f"{side} × {side}, {'grey' if channels == 1 else 'colour'}"),
        ("classes", "several an image" if store.multi_label else "one an image"),
        ("sites", f"{len(dataset.clients)}, {settings.data.partition}"),
        ("seed", str(settings.seed)),
    ]


def _site(dataset: FederatedDataset, number: int) -> dict[str, Any]:
    client = dataset.clients[number]
    store = dataset.store
    uses = (store.labels[client.train], dataset.labels(client, "train"), store.labels[client.test])
    positives = np.stack([(labels == 1).sum(axis=0) for labels in uses], axis=1)  # (C, 3)
    shown = client.train[:: max(1, len(client.train) // SHOWN_A_SITE)][:SHOWN_A_SITE]
    return {
        "name": client.site,
        "train": len(client.train),
        "labelled": int(client.labelled.sum()),
        "validation": len(client.validation),
        "test": len(client.test),
        "patients": len(set(dataset.groups(client.rows))),
        "positives": positives.tolist(),
        "sheet": _sheet(dataset.pixels[shown], SHOWN_A_SITE // 2),
    }


def _together(labels: NDArray[np.float32], classes: Sequence[str]) -> list[tuple[str, list[int]]]:
    """How many images have both classes, by row and column; the diagonal is each class alone."""
    present = (np.asarray(labels) == 1).astype(np.int64)  # (N, C)
    return list(zip(classes, (present.T @ present).tolist(), strict=True))


def _regions(source: Source) -> str | None:
    """A sheet of images with their regions marked; None where the source knows none."""
    if source.regions is None:
        return None
    marked: list[NDArray[np.uint8]] = []
    for index in range(len(source.image_ids)):
        try:
            region = source.regions(index, None)
            if region is not None:
                marked.append(_marked(source.load(index), region))
        except ImageError:
            continue
        if len(marked) == SHOWN_REGIONS:
            break
    return _sheet(np.stack(marked), SHOWN_REGIONS // 2) if marked else None


def _marked(pixels: NDArray[np.uint8], region: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """An image (H, W) or (H, W, 3) with its region's outline, as a square tile (S, S, 3)."""
    image = Image.fromarray(pixels).convert("RGB").resize((_INSIDE, _INSIDE))
    inside = np.array(Image.fromarray(region).resize((_INSIDE, _INSIDE), Image.Resampling.NEAREST))
    tile = np.array(image)
    tile[inside & ~binary_erosion(inside)] = _OUTLINE
    return tile


def _sheet(images: NDArray[np.uint8], columns: int) -> str:
    """Images (n, S, S, C) side by side as a data URI of a PNG."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * _TILE, rows * _TILE), "white")
    for position, pixels in enumerate(images):
        tile = Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)
        tile = tile.convert("RGB").resize((_INSIDE, _INSIDE), Image.Resampling.BICUBIC)
        sheet.paste(tile, (position % columns * _TILE + 1, position // columns * _TILE + 1))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
