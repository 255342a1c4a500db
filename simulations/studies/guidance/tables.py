"""The study's results as a page of Markdown that a reader can hold against `results.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.run_io.provenance import shorten
from simulations.results.figures import format_estimate, format_figure, markdown_table
from simulations.studies.guidance.measure import DRAWS, REDRAWN, Row

Column = tuple[str, str, str]
"""Heading, name of the figure, and how Python's `format` writes it."""

MAIN: tuple[Column, ...] = (
    ("flipped", "flipped", ".0%"),
    ("independent", "independent_flipped", ".0%"),
    ("target", "target_change", "+.2f"),
    ("others", "off_target", ".3f"),
    ("L1", "l1", ".4f"),
    ("L2", "l2", ".4f"),
    ("SSIM", "ssim", ".3f"),
)
PERCEIVED: Column = ("LPIPS", "lpips", ".3f")
WHERE: tuple[Column, ...] = (
    ("energy inside", "energy_inside", ".0%"),
    ("IoU", "iou", ".2f"),
    ("pointing", "pointing", ".0%"),
    ("to the patient without", "truth_l1", ".4f"),
    ("source to that", "truth_l1_source", ".4f"),
    ("change : true change", "extent", ".2f"),
    ("change inside : outside", "inside_outside", ".1f"),
    ("COUT", "cout", "+.2f"),
    ("minimality", "minimality", ".2f"),
    ("diversity", "diversity", ".3f"),
)


def guidance_page(
    results: Mapping[str, Any],
    grid: Sequence[Row],
    references: Sequence[Row],
    rows: Sequence[Row],
) -> str:
    """The page, from the results as they are written and the rows that they are of."""
    parts = [
        "# Guidance of counterfactuals",
        _introduction(results),
        "## Ours and the reference, test patients",
        _table(rows, [*MAIN, PERCEIVED], costs=True),
        "*flipped*: by the model; *independent*: by the other classifier, of images that both saw "
        "right; *target*: change of the probability asked for; *others*: mean change of the "
        "probabilities of the other classes, of exclusive ones that which was there among them; "
        "*LPIPS* with AlexNet, to the source "
        "([1801.03924](https://arxiv.org/abs/1801.03924)); *sFID* by maps that know where things "
        "are ([2103.03841](https://arxiv.org/abs/2103.03841)), of EfficientNet-Lite0.",
        "## Where the change is, and what it needs",
        _table(rows, WHERE, costs=False),
        "Of findings that were to go, where their pixels are known. *Change : true change*: L1 to "
        "the source by that of the same patient without the finding; *minimality* "
        "([2202.10166](https://arxiv.org/abs/2202.10166)) by the features that the head reads, "
        "from 0.69, a change that stays below the way to other patients with the target and "
        "beyond that to its own kind, to 1.69; *diversity*: mean LPIPS of pairs from "
        f"{DRAWS} draws, of {REDRAWN} images; 0 where nothing is drawn.",
        "## Each wish, ours",
        _wishes(rows),
    ]
    if grid:
        parts += [
            "## Grid, validation patients",
            _table(grid, MAIN, costs=True, marked=results["knee"]),
            "The knee of flips against L1 is in bold, where there is one. One attempt a point.",
        ]
    if references:
        parts += [
            "## The published procedure, validation patients",
            _table(references, MAIN, costs=True),
            "What flips most of these, and of equals what stays nearer, is held against ours on "
            "test patients.",
        ]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    independent, images = results["independent"], results["images"]
    return (
        f"Run `{results['run']}`, seed {results['seed']}, commit {shorten(results['commit'])}. "
        f"{images['test']} test and {images['validation']} validation images that the model "
        "classifies as they are labelled. The independent classifier is a "
        f"{independent['architecture']} trained on {independent['labelled_images']} labelled "
        f"images; its macro AUC is {format_figure(independent['auc_macro'])}. Intervals are 95 % "
        "over patients, with the number of images. FID is to as many images of other patients; "
        f"that of the images as they are is {results['fid_floor']:.0f}.{_missing(results)}"
    )


def _missing(results: Mapping[str, Any]) -> str:
    names = results["not_measured"]
    return f" **Not measured**, since the study ended early: {'; '.join(names)}." if names else ""


def _table(
    rows: Sequence[Row], columns: Sequence[Column], *, costs: bool, marked: str | None = None
) -> str:
    shown = [one for one in columns if any(row.figures[one[1]].count for row in rows)]
    headings = [heading for heading, _, _ in shown] + (
        ["FID", "sFID", "s an image"] if costs else []
    )
    lines = []
    for row in rows:
        name = row.method.name
        cells = [f"**{name}**" if name == marked else name]
        cells += [format_estimate(row.figures[figure], spec) for _, figure, spec in shown]
        if costs:
            cells += [f"{row.fid:.0f}", f"{row.sfid:.0f}", f"{row.seconds:.2f}"]
        lines.append(cells)
    return markdown_table(["method", *headings], lines)


def _wishes(rows: Sequence[Row]) -> str:
    ours = next(row for row in rows if row.method.name == "ours")
    columns = [*MAIN, WHERE[0]]
    lines = [
        [wish, *(format_estimate(figures[figure], spec) for _, figure, spec in columns)]
        for wish, figures in ours.wishes.items()
    ]
    return markdown_table(["wish", *(heading for heading, _, _ in columns)], lines)
