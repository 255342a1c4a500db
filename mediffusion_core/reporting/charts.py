"""Charts of a run: how its figures moved over the rounds, and what each site holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mediffusion_core.reporting.style import (
    BLUE,
    COUNTS,
    FAINT,
    INK,
    MUTED,
    OCHRE,
    PALE_BLUE,
    PAPER,
    TERRACOTTA,
    house_type,
    new_figure,
    save_figure,
)
from mediffusion_core.run_io.run_folder import EVALUATION

EVALUATED = frozenset({"joint", EVALUATION})
NAMED_CLASSES = 8
"""More thin lines than this carry no name of their own."""


@dataclass(frozen=True)
class _Line:
    key: str
    name: str
    colour: str
    dashes: str = "-"
    is_reference: bool = False


@dataclass(frozen=True)
class _Chart:
    title: str
    stages: frozenset[str]
    lines: tuple[_Line, ...]
    per_class: bool = False

    def has_data(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a line other than a reference was measured."""
        lines = (line for line in self.lines if not line.is_reference)
        return any(_series(history, self, line.key) for line in lines)


CHARTS = (
    _Chart("Autoencoder loss", frozenset({"autoencoder"}), (_Line("loss", "", BLUE),)),
    _Chart("Reconstruction PSNR (dB)", frozenset({"autoencoder"}), (_Line("psnr", "", BLUE),)),
    _Chart("Diffusion loss", frozenset({"joint"}), (_Line("diffusion_loss", "", BLUE),)),
    _Chart("Classification loss", frozenset({"joint"}), (_Line("classification_loss", "", BLUE),)),
    _Chart(
        "AUC",
        EVALUATED,
        (_Line("auc_macro", "test", BLUE), _Line("auc_pooled", "validation", TERRACOTTA, "--")),
        per_class=True,
    ),
    _Chart(
        "FID",
        EVALUATED,
        (_Line("fid", "", BLUE), _Line("fid_floor", "floor", MUTED, "--", is_reference=True)),
    ),
    _Chart("KID", EVALUATED, (_Line("kid", "", BLUE),)),
)


def save_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the curves of a run: losses, PSNR, AUC, FID and KID over the rounds.

    A chart whose figures were never measured is left out; without any, nothing is written. Where
    a resumed run repeats a round, the later line counts.

    Args:
        history: The lines of `metrics.jsonl`.
        path: The PNG to write.
    """
    charts = [chart for chart in CHARTS if chart.has_data(history)]
    if not charts:
        return
    across = 4 if len(charts) in (4, 7, 8) else min(len(charts), 3)
    lanes = [charts[start : start + across] for start in range(0, len(charts), across)]
    with house_type():
        figure = new_figure(3.0 * across, 2.35 * len(lanes), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr,call-arg]
        # Each lane has its own columns, so that long labels in one do not narrow the other.
        parts = figure.subfigures(len(lanes), 1, squeeze=False)[:, 0]
        for part, lane in zip(parts, lanes, strict=True):
            row = part.subplots(1, len(lane), squeeze=False)[0]
            for axes, chart in zip(row, lane, strict=True):
                _draw(axes, history, chart)
        save_figure(figure, path)


def save_sites(census: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Writes what each site holds: its images by use, and its images per class.

    Args:
        census: Site to `images`, `train`, `labelled`, `validation`, `test` and `per_class`.
        path: The PNG to write.

    Raises:
        ValueError: if there is no site.
    """
    if not census:
        raise ValueError("a chart of sites needs at least one site")
    per_class = {name: site.get("per_class") or {} for name, site in census.items()}
    classes = list(dict.fromkeys(name for counts in per_class.values() for name in counts))
    with house_type():
        bars = 3.6
        width = bars + (1.0 + 0.55 * len(classes) if classes else 0)
        figure = new_figure(width, 1.15 + 0.42 * len(census), layout="constrained")
        ratios = [bars, width - bars] if classes else [bars]
        axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        _draw_uses(axes[0], census)
        if classes:
            _draw_classes(axes[1], list(per_class.values()), classes)
        save_figure(figure, path)


def _measured(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


def _series(
    history: Sequence[Mapping[str, Any]], chart: _Chart, key: str, name: str | None = None
) -> dict[int, float]:
    found: dict[int, float] = {}
    for line in history:
        value = line.get(key)
        if name is not None:
            value = (value or {}).get(name)
        measured = _measured(value)
        if line.get("stage") in chart.stages and measured is not None:
            found[int(line["round"])] = measured
    return dict(sorted(found.items()))


def _draw(axes: Axes, history: Sequence[Mapping[str, Any]], chart: _Chart) -> None:
    ends: list[tuple[float, str, dict[str, Any]]] = []
    thin = chart.per_class and _draw_per_class(axes, history, chart, ends)
    for line in chart.lines:
        series = _series(history, chart, line.key)
        if not series:
            continue
        rounds, values = list(series), list(series.values())
        if line.is_reference:
            axes.axhline(values[-1], color=line.colour, ls=line.dashes, lw=1.1)
        else:
            axes.plot(rounds, values, color=line.colour, ls=line.dashes, lw=1.8, zorder=4)
            axes.plot(rounds[-1], values[-1], "o", color=line.colour, ms=4, zorder=5)
        text = f"{line.name} {_short(values[-1])}".strip()
        look = {
            "color": line.colour,
            "weight": "normal" if line.is_reference else "bold",
            "size": 8,
        }
        ends.append((values[-1], text, look))
    axes.set_title(f"{chart.title}  (thin: each class)" if thin else chart.title, pad=8)
    axes.set_xlabel("round of the joint stage" if chart.stages & EVALUATED else "round")
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.03, y=0.08)
    _label_ends(axes, ends)


def _draw_per_class(
    axes: Axes,
    history: Sequence[Mapping[str, Any]],
    chart: _Chart,
    ends: list[tuple[float, str, dict[str, Any]]],
) -> bool:
    measured = [line.get("auc_per_class") or {} for line in history]
    names = dict.fromkeys(name for line in measured for name in line)
    lines = {name: _series(history, chart, "auc_per_class", name) for name in names}
    lines = {name: line for name, line in lines.items() if line}
    for name, line in lines.items():
        axes.plot(list(line), list(line.values()), color=FAINT, lw=0.8, zorder=2)
        if len(lines) <= NAMED_CLASSES:
            ends.append((list(line.values())[-1], name, {"color": MUTED, "size": 7}))
    return bool(lines)


def _label_ends(axes: Axes, ends: list[tuple[float, str, dict[str, Any]]]) -> None:
    """Writes each label beside the end of its line, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ordered = sorted(ends, key=lambda end: end[0])
    heights = [(value - low) / (high - low) for value, _, _ in ordered]
    places = spread(heights, 0.075)
    label = 1.07 if len(ends) > 2 else 1.02
    for height, place, (_, text, look) in zip(heights, places, ordered, strict=True):
        axes.text(label, place, text, transform=axes.transAxes, va="center", ha="left", **look)
        if len(ends) > 2:
            leader: dict[str, Any] = {
                "color": FAINT,
                "lw": 0.6,
                "clip_on": False,
                "transform": axes.transAxes,
            }
            axes.plot([0.985, label - 0.01], [height, place], **leader)


def spread(places: Sequence[float], distance: float) -> list[float]:
    """Moves ascending places apart to at least `distance`, each group about its own centre."""
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1:
            gap = distance * (len(groups[-2]) + len(groups[-1])) / 2
            if np.mean(groups[-1]) - np.mean(groups[-2]) >= gap - 1e-12:
                break
            last = groups.pop()
            groups[-1] += last
    return [
        float(np.mean(group)) + (index - (len(group) - 1) / 2) * distance
        for group in groups
        for index in range(len(group))
    ]


def _short(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _draw_uses(axes: Axes, census: Mapping[str, Mapping[str, Any]]) -> None:
    sites = list(census.values())
    labelled = np.array([site.get("labelled") or 0 for site in sites])
    train = np.array([site.get("train") or 0 for site in sites])
    parts = {
        "train, labelled": (labelled, BLUE),
        "train, unlabelled": (train - labelled, PALE_BLUE),
        "validation": (np.array([site.get("validation") or 0 for site in sites]), OCHRE),
        "test": (np.array([site.get("test") or 0 for site in sites]), TERRACOTTA),
    }
    ends = np.zeros(len(sites))
    places = np.arange(len(sites))
    for name, (counts, colour) in parts.items():
        axes.barh(places, counts, 0.62, ends, label=name, color=colour, ec=PAPER, lw=0.8)
        ends += counts
    for place, end in zip(places, ends, strict=True):
        beside: dict[str, Any] = {
            "xytext": (4, 0),
            "textcoords": "offset points",
            "va": "center",
            "size": 8,
        }
        axes.annotate(f"{end:,.0f}", (end, place), **beside)
    axes.set_yticks(places, list(census), color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines["left"].set_visible(False)
    axes.set_title("Images per site", pad=26)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, fontsize=7, handlelength=0.9,
        handletextpad=0.4, columnspacing=0.9, borderpad=0.2,
    )  # fmt: skip


def _draw_classes(axes: Axes, sites: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    # (sites, classes)
    counts = np.array([[site.get(name) or 0 for name in classes] for site in sites])
    # A square root keeps rare classes visible beside common ones.
    shade = np.sqrt(counts / max(counts.max(), 1))
    axes.imshow(shade, cmap=COUNTS, vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = PAPER if shade[row, column] > 0.54 else INK
        axes.text(column, row, f"{count:,}", ha="center", va="center", size=7.5, color=colour)
    axes.set_xticks(range(len(classes)), classes)
    if max(len(name) for name in classes) > 6:
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks([])
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(sites) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, lw=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Images per class", pad=26)
