"""The study's page in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.run_io.provenance import shorten
from simulations.results.figures import format_estimate, format_figure, markdown_table
from simulations.studies.guidance.kept_subgroups import KEPT, kept_figure
from simulations.studies.guidance.measure import CYCLED, DRAWS, REDRAWN, Row

Column = tuple[str, str, str]
"""Heading, name of the figure, and its format specification."""

MAIN: tuple[Column, ...] = (
    ("flipped", "flipped", ".0%"),
    ("independent", "independent_flipped", ".0%"),
    ("target", "target_change", "+.2f"),
    ("others", "off_target", ".3f"),
    ("L1", "l1", ".4f"),
    ("L2", "l2", ".4f"),
    ("SSIM", "ssim", ".3f"),
)
PERCEPTUAL: Column = ("LPIPS", "lpips", ".3f")
EFFECTS: tuple[Column, ...] = (
    ("energy inside", "energy_inside", ".0%"),
    ("IoU", "iou", ".2f"),
    ("pointing", "pointing", ".0%"),
    ("L1 to the truth", "truth_l1", ".4f"),
    ("source: L1 to the truth", "truth_l1_source", ".4f"),
    ("SSIM to the truth", "truth_ssim", ".3f"),
    ("source: SSIM to the truth", "truth_ssim_source", ".3f"),
    ("change : true change", "extent", ".2f"),
    ("change inside : outside", "inside_outside", ".1f"),
    ("COUT", "cout", "+.2f"),
    ("minimality", "minimality", ".2f"),
    ("diversity", "diversity", ".3f"),
)
AXIOMS: tuple[Column, ...] = (
    ("composition", "composition", ".4f"),
    ("reversibility", "reversibility", ".4f"),
    ("S³", "s3", ".3f"),
    ("correlation difference", "correlation_difference", ".2f"),
    *((f"{attribute} kept", kept_figure(attribute), ".0%") for attribute in KEPT),
)
ADDED: tuple[Column, ...] = (
    ("L1 to a truth", "added_l1", ".4f"),
    ("source: L1 to it", "added_l1_source", ".4f"),
    ("SSIM to a truth", "added_ssim", ".3f"),
    ("source: SSIM to it", "added_ssim_source", ".3f"),
)


def guidance_page(
    results: Mapping[str, Any],
    grid: Sequence[Row],
    references: Sequence[Row],
    rows: Sequence[Row],
) -> str:
    """The page of the study.

    Args:
        results: As in `results.json`.
        grid: The points of the grid, on validation patients.
        references: The published procedure at several settings, on validation patients.
        rows: The compared methods, on test patients.
    """
    parts = [
        "# Guidance of counterfactuals",
        _introduction(results),
        "## Ours and the Mediffusion baseline, test patients",
        _table(rows, [*MAIN, PERCEPTUAL], costs=True),
        "*flipped*: share of images that the model classifies as the target; *independent*: the "
        "same by the independent classifier, of images that both classify correctly; *target*: "
        "change of the target's probability; *others*: mean change of the probabilities of the "
        "other classes, with exclusive classes including the original one; *LPIPS* with AlexNet, "
        "to the source ([1801.03924](https://arxiv.org/abs/1801.03924)); *sFID* on spatial "
        "features ([2103.03841](https://arxiv.org/abs/2103.03841)) of EfficientNet-Lite0.",
        "## Place and size of the change",
        _table(rows, EFFECTS, costs=False),
        "Of removed findings with known pixels. *Change : true change*: L1 to the source, divided "
        "by the L1 between the source and the same patient without the finding; *minimality* "
        "([2202.10166](https://arxiv.org/abs/2202.10166)) on the features of the head, from 0.69 "
        "to 1.69: low if the change is smaller than the distance to patients with the target and "
        "larger than that to patients of the original class; *diversity*: mean LPIPS of pairs of "
        f"{DRAWS} draws, of {REDRAWN} images; 0 without noise; *truth*: the same patient without "
        "the finding.",
        *_added(rows),
        "## Composition, reversibility, features, correlations, subgroups",
        _table(rows, AXIOMS, costs=False),
        _about_axioms(results),
        "## Ours by target",
        _by_target(rows),
    ]
    if grid:
        parts += [
            "## Grid, validation patients",
            _table(grid, MAIN, costs=True, marked=results["knee"]),
            "The knee of flips against L1, if any, is in bold. Each point has one candidate.",
        ]
    if references:
        parts += [
            "## The published procedure, validation patients",
            _table(references, MAIN, costs=True),
            "The setting with the most flips, of equal ones that with the smallest L1, is compared "
            "with ours on test patients.",
        ]
    return "\n\n".join(parts) + "\n"


def _added(rows: Sequence[Row]) -> list[str]:
    """The section on added findings; nothing where no true image is known."""
    if not any(row.figures["added_l1"].count for row in rows):
        return []
    return [
        "## Added findings",
        _table(rows, ADDED, costs=False),
        "*A truth*: the same patient drawn with the finding at one of its possible places, which "
        "the image without it does not tell.",
    ]


def _about_axioms(results: Mapping[str, Any]) -> str:
    return (
        "*Composition* and *reversibility* ([2303.01274](https://arxiv.org/abs/2303.01274)): L1 of "
        "a source to its counterfactual for the class that it already has, and to the image after "
        f"the change was undone, of up to {CYCLED} images; *effectiveness* there is "
        "*independent* here. *S³* ([2303.09962](https://arxiv.org/abs/2303.09962)): cosine between "
        f"source and counterfactual, of the features of {results['extractor']}, so it compares "
        "with no published value. *Correlation difference* "
        "([2203.15636](https://arxiv.org/abs/2203.15636)): between how the independent "
        "classifier's decisions change together and how labels occur together."
        f"{_about_subgroups(results['subgroup_accuracies'])}"
    )


def _about_subgroups(accuracies: Mapping[str, float]) -> str:
    if not accuracies:
        return ""
    listed = ", ".join(f"{name} {accuracy:.0%}" for name, accuracy in accuracies.items())
    return (
        " *Kept*: share of counterfactuals that show the subgroup of the original image, by a "
        "logistic regression on the same features, of originals for which it is right. "
        "In the images that it is fitted on, each combination of labels is equally frequent in all "
        f"subgroups. Its balanced accuracy on images of test patients: {listed}. An attribute "
        "nearer to guessing than to 100 % has no figure."
    )


def _introduction(results: Mapping[str, Any]) -> str:
    independent, images = results["independent"], results["images"]
    return (
        f"Run `{results['run']}`, seed {results['seed']}, commit {shorten(results['commit'])}. "
        f"{images['test']} test and {images['validation']} validation images that the model "
        "classifies correctly. The independent classifier is a "
        f"{independent['architecture']} trained on {independent['labelled_images']} labelled "
        f"images; its macro AUC is {format_figure(independent['auc_macro'])}. Intervals are 95 % "
        "over patients, with the number of images. FID is to as many images of other patients; "
        f"that of the original images is {results['fid_floor']:.0f}.{_missing(results)}"
    )


def _missing(results: Mapping[str, Any]) -> str:
    names = results["not_measured"]
    return f" **Not measured**, since the study ended early: {'; '.join(names)}." if names else ""


def _table(
    rows: Sequence[Row], columns: Sequence[Column], *, costs: bool, marked: str | None = None
) -> str:
    shown = [one for one in columns if any(row.figures[one[1]].count for row in rows)]
    headings = [heading for heading, _, _ in shown] + (
        ["FID", "sFID", "s per image"] if costs else []
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


def _by_target(rows: Sequence[Row]) -> str:
    ours = next(row for row in rows if row.method.name == "ours")
    columns = [*MAIN, EFFECTS[0]]
    lines = [
        [target, *(format_estimate(figures[figure], spec) for _, figure, spec in columns)]
        for target, figures in ours.by_target.items()
    ]
    return markdown_table(["target", *(heading for heading, _, _ in columns)], lines)
