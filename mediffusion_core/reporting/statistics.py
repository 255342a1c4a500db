"""Statistics of the sites' images: one HTML page, one JSON file, and a short table in Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mediffusion_core.reporting.formats import count, markdown_table, measured, number, percent
from mediffusion_core.reporting.pages import render_page
from mediffusion_core.reporting.statistics_page import PAGE
from mediffusion_core.run_io.run_folder import write_json

Figures = Mapping[str, Any]

FILE, PAGE_FILE = "statistics.json", "statistics.html"
ALL = "all sites"
SUPPRESSED = "suppressed"
NOT_KNOWN = "not known"
NOT_SENT = "not sent"
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}


def write_statistics(folder: Path, figures: Figures) -> Path:
    """Writes `statistics.json` and the page beside it.

    Args:
        folder: Of the run.
        figures: With the keys of `server.statistics`.

    Returns:
        The path of the page.
    """
    write_json(folder / FILE, figures)
    target = folder / PAGE_FILE
    target.write_text(statistics_page(read_statistics(folder)), encoding="utf-8")
    return target


def read_statistics(folder: Path) -> Figures:
    """The figures that `write_statistics` wrote."""
    figures: Figures = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return figures


def statistics_page(figures: Figures) -> str:
    """The page: sites side by side, prevalence of classes, subgroups, and intensities."""
    places = _places(figures)
    pooled = figures["pooled"]
    return render_page(
        PAGE,
        source=figures["source"],
        facts=[
            ("sites", str(len(figures["sites"]))),
            ("images", _images(pooled)),
            (f"{pooled['unit']}s", count(pooled["units"])),
            ("privacy", _privacy(figures["privacy"])),
        ],
        unit=pooled["unit"],
        private=figures["privacy"] is not None,
        names=list(places),
        sites=[(name, _counts(one)) for name, one in places.items()],
        classes=[
            (name, [_class(one["classes"][name]) for one in places.values()])
            for name in pooled["classes"]
        ],
        subgroups=list(_subgroups(places)),
        intensities=list(_intensities(places)),
        set_aside=[(one["site"], one["reason"]) for one in figures["set_aside"]],
        suppressed=SUPPRESSED,
    )


def statistics_table(figures: Figures) -> str:
    """Two tables in Markdown: images and labels by site, and the prevalence of each class."""
    places = _places(figures)
    unit = figures["pooled"]["unit"]
    head = ("site", "images", f"{unit}s", "labelled", "unlabelled", "mean intensity")
    rows = [
        (name, *_counts(one), ", ".join(number(part["mean"]) for part in one["intensity"]))
        for name, one in places.items()
    ]
    prevalence = [
        (name, *(_prevalence(one["classes"][name]) for one in places.values()))
        for name in figures["pooled"]["classes"]
    ]
    lines = [*markdown_table(head, rows), "", *markdown_table(("class", *places), prevalence)]
    if figures["privacy"] is not None:
        lines += ["", f"Privacy: {_privacy(figures['privacy'])}."]
    for one in figures["set_aside"]:
        lines += ["", f"{one['site']} does not count: {one['reason']}."]
    return "\n".join(lines) + "\n"


def _places(figures: Figures) -> dict[str, Figures]:
    """The sites, and all together where they are several."""
    sites = dict(figures["sites"])
    return {**sites, ALL: figures["pooled"]} if len(sites) > 1 else sites


def _counts(place: Figures) -> tuple[str, ...]:
    cells = (_cell(one) for one in place["labelled"].values())
    return (_images(place), count(max(0, place["units"])), *cells)


def _images(place: Figures) -> str:
    return NOT_SENT if place["images"] is None else count(place["images"])


def _privacy(promised: Figures | None) -> str:
    if promised is None:
        return "counts are exact, small ones suppressed"
    return (
        f"ε {number(promised['epsilon'], 2)} for one {promised['unit']} at δ "
        f"{promised['target_delta']}; the noise in each count of a site has a standard deviation "
        f"of {number(promised['deviation'], 1)}"
    )


def _cell(cell: Figures) -> str:
    """A count; at least that where some sites suppress theirs."""
    if cell["count"] is None:
        return SUPPRESSED
    return f"{'≥ ' if cell['suppressed_at'] else ''}{count(max(0, cell['count']))}"


def _class(figures: Figures) -> dict[str, Any]:
    """Prevalence, and each state's count that leaves."""
    cells = {state: _cell(figures[state]) for state in ("positive", "negative", "missing")}
    sent = [f"{text} {state}" for state, text in cells.items() if text != SUPPRESSED]
    return {"prevalence": _prevalence(figures), "counts": sent}


def _prevalence(figures: Figures) -> str:
    value = measured(figures["prevalence"])
    if value is not None:
        return percent(value, 1)
    return SUPPRESSED if figures["positive"]["suppressed_at"] else NOT_KNOWN


def _subgroups(places: Mapping[str, Figures]) -> Iterator[tuple[str, list[str]]]:
    some = next(iter(places.values()))["subgroups"]
    for attribute, subgroups in some.items():
        for subgroup in subgroups:
            cells = [_cell(one["subgroups"][attribute][subgroup]) for one in places.values()]
            yield f"{attribute} {subgroup}", cells


def _intensities(places: Mapping[str, Figures]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """By channel, a chart of each place; heights of a channel are on one scale."""
    channels = len(next(iter(places.values()))["intensity"])
    names = CHANNELS.get(channels, tuple(f"channel {one + 1}" for one in range(channels)))
    for channel, name in enumerate(names):
        own = {place: one["intensity"][channel] for place, one in places.items()}
        shares = {place: _shares(one["histogram"]) for place, one in own.items()}
        highest = max((max(one) for one in shares.values()), default=0) or 1.0
        pooled = shares.get(ALL)
        yield (
            name,
            [
                {
                    "place": place,
                    "bars": [one / highest for one in shares[place]],
                    "line": [one / highest for one in pooled] if pooled and place != ALL else [],
                    "hidden": [bool(at) for at in own[place]["suppressed_at"]],
                    "mean": number(own[place]["mean"]),
                    "deviation": number(own[place]["deviation"]),
                    "shown": percent(own[place]["shown"], 1),
                }
                for place in places
            ],
        )


def _shares(histogram: Sequence[float]) -> list[float]:
    above = [max(0.0, one) for one in histogram]
    return [one / (sum(above) or 1.0) for one in above]
