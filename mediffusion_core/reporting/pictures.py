"""Pictures of a run: samples, reconstructions and counterfactuals, and the charts beside them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mediffusion_core.evaluation.counterfactual_panel import CounterfactualRow
from mediffusion_core.reporting.charts import save_curves, save_sites
from mediffusion_core.reporting.counterfactual_pair import ClassChange, CounterfactualPair
from mediffusion_core.reporting.style import (
    BLUE,
    DIFFERENCE,
    FAINT,
    INK,
    MUTED,
    OCHRE,
    PAPER,
    RULE,
    TERRACOTTA,
    Images,
    as_batch,
    as_png,
    as_tile,
    house_type,
    new_figure,
    save_figure,
    tile_size,
    typeface,
)
from mediffusion_core.run_io.run_folder import write_json

__all__ = [
    "save_counterfactual_pair",
    "save_counterfactual_panel",
    "save_curves",
    "save_reconstructions",
    "save_sample_grid",
    "save_sites",
]

GUTTER, MARGIN = 4, 16
"""Pixels between tiles and around a grid."""

TILE, GAP, EDGE, HEADING, SPACING, CHART, LABELS, VALUES = 1.5, 0.07, 0.2, 0.34, 0.3, 1.55, 1.3, 1.1
"""Inches of the counterfactual panel: tile side, gap, edge, heading, row spacing, chart, texts."""

LARGE = 512
"""Shorter side, in pixels, of the images that are shown large."""

SHOWN_CLASSES = 7
VERDICTS = {
    True: ("flipped", BLUE),
    False: ("did not flip", TERRACOTTA),
    None: ("already met", MUTED),
}
"""The heading of a counterfactual's probabilities, and its colour."""
MINUS = "\N{MINUS SIGN}"


def save_sample_grid(images: Images, path: Path, columns: int = 8, title: str = "") -> None:
    """Writes images (N, C, H, W) in [0, 1] as a grid, row by row, at least 128 px a tile."""
    batch = as_batch(images)
    columns = min(columns, len(batch))
    width, height = tile_size(*batch.shape[2:])
    rows = -(-len(batch) // columns)
    font = typeface(20, bold=True, text=title)
    top = MARGIN + (36 if title else 0)
    across = columns * (width + GUTTER) - GUTTER
    across = max(across, round(font.getlength(title)))
    down = rows * (height + GUTTER) - GUTTER
    canvas = Image.new("RGB", (across + 2 * MARGIN, top + down + MARGIN), PAPER)
    ImageDraw.Draw(canvas).text((MARGIN, top - 14), title, INK, font, anchor="ls")
    for index, image in enumerate(batch):
        row, column = divmod(index, columns)
        corner = (MARGIN + column * (width + GUTTER), top + row * (height + GUTTER))
        canvas.paste(as_tile(image, (width, height)), corner)
    _save_image(canvas, path)


def save_reconstructions(
    images: Images, reconstructions: Images, psnr: Sequence[float] | NDArray[Any], path: Path
) -> None:
    """Writes pairs, source above and reconstruction below, with the PSNR under each.

    Args:
        images: Sources, (N, C, H, W) in [0, 1].
        reconstructions: What the autoencoder made of them, same shape.
        psnr: One value an image, (N,), in dB.
        path: The PNG to write.

    Raises:
        ValueError: if the shapes or lengths differ.
    """
    sources, copies = as_batch(images), as_batch(reconstructions)
    if sources.shape != copies.shape or len(psnr) != len(sources):
        raise ValueError(
            f"{sources.shape} images, {copies.shape} reconstructions and {len(psnr)} PSNR "
            "values do not belong together"
        )
    width, height = tile_size(*sources.shape[2:])
    columns = min(8, len(sources))
    left, foot = MARGIN + 30, 34
    block = 2 * height + GUTTER + foot
    rows = -(-len(sources) // columns)
    size = (left + columns * (width + GUTTER) - GUTTER + MARGIN, MARGIN + rows * block)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for row in range(rows):
        for text, offset in (("source", 0), ("reconstruction", height + GUTTER)):
            _paste_upright(canvas, text, MARGIN, MARGIN + row * block + offset, height)
    for index, (source, copy) in enumerate(zip(sources, copies, strict=True)):
        row, column = divmod(index, columns)
        x, y = left + column * (width + GUTTER), MARGIN + row * block
        canvas.paste(as_tile(source, (width, height)), (x, y))
        canvas.paste(as_tile(copy, (width, height)), (x, y + height + GUTTER))
        centre = (x + width // 2, y + 2 * height + GUTTER + 7)
        draw.text(centre, f"{float(psnr[index]):.1f} dB", MUTED, typeface(14), anchor="mt")
    _save_image(canvas, path)


def save_counterfactual_panel(rows: Sequence[CounterfactualRow], path: Path) -> None:
    """Writes one row a counterfactual: images, signed difference, probabilities.

    The difference is counterfactual minus source, averaged over channels; one symmetric scale
    serves all rows. A column with the true image appears if any row has one. Of more than seven
    classes those named in the target and those that moved most are shown. The pixels that a user
    let change are outlined in all images of their row.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("a counterfactual panel needs at least one row")
    columns = ["Source", "Counterfactual", "Difference"]
    if any(row.truth is not None for row in rows):
        columns.append("Truth")
    differences = [signed_difference(row) for row in rows]
    limit = max(max(float(np.abs(difference).max()) for difference in differences), 0.01)
    with house_type():
        panel = _Panel(len(rows), columns, rows[0].source.shape)
        for index, (row, difference) in enumerate(zip(rows, differences, strict=True)):
            pictures = [row.source, row.counterfactual, _coloured(difference, limit), row.truth]
            for column, picture in enumerate(pictures[: len(columns)]):
                panel.show(index, column, picture, row.editable)
            panel.chart(index, row)
        panel.colour_bar(limit)
        save_figure(panel.figure, path)


def save_counterfactual_pair(rows: Sequence[CounterfactualRow], path: Path) -> None:
    """Writes one of a panel's counterfactuals for the first screen of the report.

    It is the first row whose image was not classified as the target before, whatever became of it;
    the first row where there is none.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("a counterfactual pair needs at least one row")
    row = next((row for row in rows if row.flipped is not None), rows[0])
    named = _named(row)
    _, height, width = row.source.shape
    size = tile_size(height, width, smallest=LARGE, largest=LARGE)
    difference = np.asarray(row.counterfactual, np.float64) - np.asarray(row.source, np.float64)
    pair = CounterfactualPair(
        target=row.target,
        flipped=row.flipped,
        classes=tuple(
            ClassChange(name=name, before=_finite(before), after=_finite(after), named=k in named)
            for k, (name, before, after) in enumerate(
                zip(row.classes, row.before, row.after, strict=True)
            )
        ),
        l1=_finite(np.abs(difference).mean()),
        image=as_png(row.source, size),
        counterfactual=as_png(row.counterfactual, size),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, pair.model_dump())


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def signed_difference(row: CounterfactualRow) -> NDArray[np.float64]:
    """Counterfactual minus source, mean over channels, (H, W); brighter is positive."""
    change = np.asarray(row.counterfactual, np.float64) - np.asarray(row.source, np.float64)
    return np.asarray(np.nan_to_num(change).mean(axis=0))


def shown_classes(row: CounterfactualRow, most: int = SHOWN_CLASSES) -> list[int]:
    """Indices, in their own order, of the classes that a row's chart has room for.

    Classes that the target names come first, then those whose probability moved most.
    """
    change = np.nan_to_num(np.abs(np.asarray(row.after) - np.asarray(row.before)))
    named = _named(row)
    order = sorted(range(len(row.classes)), key=lambda k: (k not in named, -change[k]))
    return sorted(order[:most])


def _named(row: CounterfactualRow) -> set[int]:
    return {
        index
        for index, name in enumerate(row.classes)
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", row.target)
    }


def _coloured(difference: NDArray[Any], limit: float) -> NDArray[Any]:
    colours = DIFFERENCE(Normalize(-limit, limit)(difference))  # (H, W, 4)
    return np.asarray(colours[..., :3].transpose(2, 0, 1))  # (3, H, W)


class _Panel:
    """The page of a counterfactual panel; places things in inches from its top left corner."""

    def __init__(self, rows: int, columns: list[str], shape: tuple[int, ...]) -> None:
        self.rows, self.columns = rows, columns
        self.tile_height = TILE * shape[1] / shape[2]
        self.row_height = max(self.tile_height, 1.3)
        self.width = EDGE + len(columns) * (TILE + GAP) + 0.15 + LABELS + CHART + VALUES + EDGE
        self.height = EDGE + HEADING + rows * (self.row_height + SPACING) + 0.45
        self.figure: Figure = new_figure(self.width, self.height)
        chart_left = self._left(len(columns)) + 0.15 + LABELS
        for column, name in enumerate(columns):
            self._text(self._left(column), EDGE, name, weight="bold")
        self._text(chart_left, EDGE, "Probability", weight="bold")
        self._text(chart_left + 0.9, EDGE, "○ before   ● after", color=MUTED)
        self.chart_left = chart_left

    def _left(self, column: int) -> float:
        return EDGE + column * (TILE + GAP)

    def _top(self, row: int) -> float:
        return EDGE + HEADING + row * (self.row_height + SPACING)

    def _text(self, x: float, y: float, text: str, **look: Any) -> None:
        options: dict[str, Any] = {"va": "top", "ha": "left", "size": 9} | look
        self.figure.text(x / self.width, 1 - y / self.height, text, **options)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height)
        return self.figure.add_axes((*box, width / self.width, height / self.height))

    def show(
        self,
        row: int,
        column: int,
        picture: NDArray[Any] | None,
        outlined: NDArray[np.bool_] | None,
    ) -> None:
        if picture is None:
            return
        axes = self._axes(self._left(column), self._top(row), TILE, self.tile_height)
        size = (round(TILE * 200), round(self.tile_height * 200))
        axes.imshow(as_tile(as_batch(np.asarray(picture)[None])[0], size), aspect="auto")
        if outlined is not None:
            _outline(axes, outlined, size)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=RULE)

    def chart(self, row: int, content: CounterfactualRow) -> None:
        top, named, shown = self._top(row), _named(content), shown_classes(content)
        self._text(self.chart_left - LABELS, top, content.target, weight="bold")
        verdict, colour = VERDICTS[content.flipped]
        right = self.chart_left + CHART + VALUES
        self._text(right, top, verdict, ha="right", color=colour, weight="bold")
        hidden = len(content.classes) - len(shown)
        height = min(0.2 * len(shown), self.row_height - 0.22 - (0.16 if hidden else 0))
        axes = self._axes(self.chart_left, top + 0.22, CHART, height)
        for place, index in enumerate(shown):
            _dumbbell(axes, place, content, index, emphasised=index in named)
        axes.set(xlim=(-0.04, 1.04), ylim=(len(shown) - 0.5, -0.5), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for x in (0.0, 0.5, 1.0):
            axes.axvline(x, color=RULE, lw=0.7, zorder=0)
        if hidden:
            rest = sorted(set(range(len(content.classes))) - set(shown))
            moved = np.abs(np.asarray(content.after) - np.asarray(content.before))[rest].max()
            text = f"{hidden} other classes moved by at most {moved:.2f}"
            self._text(self.chart_left, top + 0.22 + height + 0.03, text, size=7, color=MUTED)

    def colour_bar(self, limit: float) -> None:
        top = self._top(self.rows) - SPACING + 0.1
        axes = self._axes(self._left(2), top, TILE, 0.09)
        bar = self.figure.colorbar(
            ScalarMappable(Normalize(-limit, limit), DIFFERENCE), axes, orientation="horizontal"
        )
        bar.set_ticks([-limit, 0, limit], labels=[f"{MINUS}{limit:.2f}", "0", f"+{limit:.2f}"])
        bar.outline.set_visible(False)
        left, *_, right = axes.get_xticklabels()
        left.set_horizontalalignment("left")
        right.set_horizontalalignment("right")
        scale = self._axes(self.chart_left, top, CHART, 0.01)
        scale.set(xlim=(-0.04, 1.04), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"), yticks=[])
        scale.spines[:].set_visible(False)
        scale.tick_params(length=0)


def _outline(axes: Axes, region: NDArray[np.bool_], size: tuple[int, int]) -> None:
    """Draws the border of a region (H, W) on a tile of `size` (width, height), along its pixels."""
    limits = axes.axis()
    tile = np.asarray(Image.fromarray(region).resize(size, Image.Resampling.NEAREST))
    closed = np.pad(tile, 1).astype(float)  # at the tile's margin too
    across, down = (np.arange(-1, count + 1) for count in size)
    lines = axes.contour(across, down, closed, levels=[0.5], colors=[OCHRE], linewidths=1.0)
    lines.set(clip_on=False, zorder=3)  # above the tile's frame
    axes.axis(limits)


def _dumbbell(
    axes: Axes, place: int, row: CounterfactualRow, index: int, *, emphasised: bool
) -> None:
    colour, weight = (BLUE, "bold") if emphasised else (FAINT, "normal")
    before, after = float(row.before[index]), float(row.after[index])
    axes.plot([before, after], [place, place], color=colour, lw=1.8 if emphasised else 1.2)
    axes.plot(before, place, "o", ms=4.5, mfc=PAPER, mec=colour, mew=1.2, zorder=3)
    axes.plot(after, place, "o", ms=4.5, mfc=colour, mec=colour, mew=1.2, zorder=4)
    text: dict[str, Any] = {"va": "center", "size": 7.5, "weight": weight}
    text |= {"color": INK if emphasised else MUTED, "transform": axes.get_yaxis_transform()}
    name = row.classes[index]
    name = name if len(name) <= 20 else name[:19] + "…"
    axes.text(-0.03, place, name, ha="right", **text)
    axes.text(1.04, place, f"{before:.2f} → {after:.2f}", ha="left", **text)


def _paste_upright(canvas: Image.Image, text: str, left: int, top: int, height: int) -> None:
    strip = Image.new("RGB", (height, 22), PAPER)
    ImageDraw.Draw(strip).text((height // 2, 11), text, MUTED, typeface(14), anchor="mm")
    canvas.paste(strip.transpose(Image.Transpose.ROTATE_90), (left, top))


def _save_image(canvas: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, format="PNG", optimize=True)
