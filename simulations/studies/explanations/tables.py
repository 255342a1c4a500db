"""The study's page in Markdown."""

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
    results: Mapping[str, Any], rows: Sequence[Row], differences: Differences, pairs: Agreement
) -> str:
    """The page of the study.

    Args:
        results: As in `results.json`.
        rows: One for each method.
        differences: Our figures minus those of each other method.
        pairs: Agreement of each pair of methods.
    """
    parts = [
        "# Explanations",
        _introduction(results),
        _figures(rows),
        "*Deletion*: area under the probability of the class while the highest pixels of the map "
        "are replaced by the mean image; *insertion*: the same while they are inserted into it "
        "([1806.07421](https://arxiv.org/abs/1806.07421)); *pointing*: the highest pixel is in "
        "the mask widened by 2 pixels ([1608.00507](https://arxiv.org/abs/1608.00507)); *inside*: "
        "share of the map's positive part there ([1910.01279](https://arxiv.org/abs/1910.01279)); "
        "*IoU*: of the mask and as many of the highest pixels; *flipped*: counterfactuals that the "
        "model no longer classifies as the class. *Chance* is a map of random values.",
        "![Curves](curves.png)",
        "## Ours minus each other method, paired by image",
        _differences(differences),
        "## Agreement of the maps",
        "Mean Spearman correlation of the pixels of two maps.",
        _agreement([row.explanation.name for row in rows], pairs),
        "## Randomly selected images",
        "![Maps](panel.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    independent = results["independent"]
    return (
        f"Run `{results['run']}`, seed {results['seed']}, commit {shorten(results['commit'])}. "
        f"{results['images']} test images that the model classifies correctly, after the "
        f"autoencoder; {results['masks']} have a mask. Every method explains the predicted class. "
        "External guidance uses the "
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
    return markdown_table(["method", *(heading for heading, *_ in shown), "s per image"], lines)


def _differences(differences: Differences) -> str:
    columns = [
        one for one in COLUMNS if any(figures[one[1]].count for figures in differences.values())
    ]
    lines = [
        [name, *(format_estimate(figures[key], f"+{spec}") for _, key, spec in columns)]
        for name, figures in differences.items()
    ]
    return markdown_table(["ours minus", *(heading for heading, *_ in columns)], lines)


def _agreement(names: Sequence[str], pairs: Agreement) -> str:
    lines = []
    for row, name in enumerate(names[:-1]):
        others = [pairs[name, other] for other in names[row + 1 :]]
        cells = [format_estimate(one, "+.2f", counted=False) for one in others]
        lines.append([name, *[""] * row, *cells])
    return markdown_table(["", *names[1:]], lines)
