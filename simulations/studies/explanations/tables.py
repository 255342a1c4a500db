"""The study's results as a page of Markdown that a reader can hold against `results.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.run_io.provenance import shorten
from simulations.results.figures import format_estimate, format_figure, markdown_table
from simulations.studies.explanations.measure import Row

COLUMNS = (
    ("deletion ↓", "deletion", ".3f"),
    ("insertion ↑", "insertion", ".3f"),
    ("pointing ↑", "pointing", ".0%"),
    ("inside ↑", "inside", ".0%"),
    ("IoU ↑", "iou", ".2f"),
    ("flipped", "flipped", ".0%"),
)
Agreement = Mapping[tuple[str, str], Estimate]
Differences = Mapping[str, Mapping[str, Estimate]]


def explanations_page(
    results: Mapping[str, Any], rows: Sequence[Row], ahead: Differences, pairs: Agreement
) -> str:
    """The page, from the results as they are written and what they are of."""
    parts = [
        "# Explanations",
        _introduction(results),
        _figures(rows),
        "*Deletion* and *insertion*: area under the class's probability as the pixels that the map "
        "ranks highest give way to the mean image, or come into it "
        "([1806.07421](https://arxiv.org/abs/1806.07421)); *pointing*: the highest pixel lies in "
        "the mask widened by 2 pixels ([1608.00507](https://arxiv.org/abs/1608.00507)); *inside*: "
        "share of the map's positive part there ([1910.01279](https://arxiv.org/abs/1910.01279)); "
        "*IoU*: of the mask and as many of the highest pixels; *flipped*: counterfactuals in which "
        "the model no longer sees the class. *Chance* ranks pixels by lot.",
        "![Curves](curves.png)",
        "## Ours less each other, image by image",
        _differences(ahead),
        "## Do they agree?",
        "Mean Spearman correlation of two maps' pixels.",
        _agreement([row.explanation.name for row in rows], pairs),
        "## Images drawn by the seed",
        "![Maps](panel.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    independent = results["independent"]
    return (
        f"Run `{results['run']}`, seed {results['seed']}, commit {shorten(results['commit'])}. "
        f"{results['images']} test images that the model classifies as they are labelled, as the "
        f"autoencoder shows them; {results['masks']} have a mask. Every method explains the class "
        "that the model sees. External guidance is that of the "
        f"{independent['architecture']} trained on {independent['labelled_images']} labelled "
        f"images, macro AUC {format_figure(independent['auc_macro'])}. Intervals are 95 % over "
        "patients, with the number of images."
    )


def _figures(rows: Sequence[Row]) -> str:
    shown = [one for one in COLUMNS if any(row.figures[one[1]].count for row in rows)]
    lines = [
        [
            row.explanation.name,
            *(format_estimate(row.figures[name], spec) for _, name, spec in shown),
            f"{row.explanation.seconds:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(["method", *(heading for heading, *_ in shown), "s an image"], lines)


def _differences(ahead: Differences) -> str:
    columns = [one for one in COLUMNS if any(figures[one[1]].count for figures in ahead.values())]
    lines = [
        [name, *(format_estimate(figures[key], f"+{spec}") for _, key, spec in columns)]
        for name, figures in ahead.items()
    ]
    return markdown_table(["ours less", *(heading for heading, *_ in columns)], lines)


def _agreement(names: Sequence[str], pairs: Agreement) -> str:
    lines = []
    for row, name in enumerate(names[:-1]):
        others = [pairs[name, other] for other in names[row + 1 :]]
        cells = [format_estimate(one, "+.2f", counted=False) for one in others]
        lines.append([name, *[""] * row, *cells])
    return markdown_table(["", *names[1:]], lines)
