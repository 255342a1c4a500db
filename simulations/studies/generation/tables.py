"""The study's page, in Markdown."""

from collections.abc import Mapping
from typing import Any

from mediffusion_core.run_io.provenance import shorten
from simulations.results.figures import format_figure, format_interval, markdown_table

DIGITS = {"fid": ".0f", "kid": ".4f"}
HEADS = {
    "fid": "FID ↓",
    "kid": "KID ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
}


def generation_page(results: Mapping[str, Any]) -> str:
    """The page of the study from its `results.json`."""
    rows = results["sets"]
    parts = [
        "# Generation",
        f"Run {results['run']}, seed {results['seed']}, commit {shorten(results['commit'])}. Each "
        f"set has {results['count']} images and is compared with {results['count']} real test "
        f"images on {results['extractor']} features; intervals are 95 %, from "
        f"{results['half_samples']} half-samples (delete-half jackknife, by patients).",
        markdown_table(["images", *HEADS.values()], [_distances(row) for row in rows]),
        "*Real*: test images of other patients, the figures of a perfect generator. FID, "
        "[1706.08500](https://arxiv.org/abs/1706.08500); KID, "
        "[1801.01401](https://arxiv.org/abs/1801.01401); precision and recall, k = 3, "
        "[1904.06991](https://arxiv.org/abs/1904.06991); density and coverage, k = 5, "
        "[2002.09797](https://arxiv.org/abs/2002.09797).",
        "## Copies of training images",
        markdown_table(
            [
                "images",
                "distance to the nearest training image, median",
                "closer than a test image",
            ],
            [_copies(row) for row in rows],
        ),
        f"Over {results['training_images']} training images. The last column is how often an image "
        "of the set is closer to a training image than a test image is "
        "([2004.05675](https://arxiv.org/abs/2004.05675)): 0.5 for new images of the same "
        "distribution, 1 for copies, less for samples unlike real images.",
    ]
    guided = [row for row in rows if row.get("obedience") is not None]
    if guided:
        parts += [
            "## Requested labels",
            *(
                f"{row['name']}: macro AUC of the model's own classifier for the requested labels, "
                f"on the decoded images, {format_figure(row['obedience'])}; on real test images "
                f"with these labels {format_figure(results['obedience_real'])}."
                for row in guided
            ),
        ]
    if results["usefulness"] is not None:
        parts += _usefulness(results["usefulness"])
    parts += ["## Pictures", *(_pictures(row) for row in rows)]
    return "\n\n".join(parts) + "\n"


def usefulness_table(rows: Mapping[str, Any]) -> str:
    """AUC of a ResNet-18 trained on real images, on generated ones, and on both."""
    table = []
    for name, row in rows.items():
        low, high = (format_figure(end) for end in row["interval"])
        against = row["against_real"]
        paired = "-" if against is None else format_interval(against, "+.3f")
        auc = f"{format_figure(row['auc'])} ({low} to {high})"
        table.append([name, str(row["images"]), auc, paired])
    headings = ["trained on", "images", "macro AUC on real test images", "against real"]
    return markdown_table(headings, table)


def _usefulness(rows: Mapping[str, Any]) -> list[str]:
    return [
        "## Training on generated images",
        usefulness_table(rows),
        "A ResNet-18 is trained for equally many steps on the labelled training images of all "
        "sites, on as many class-guided samples with labels sampled from them, and on both "
        "([1905.10887](https://arxiv.org/abs/1905.10887)), several times each. Intervals are over "
        "trainings and resampled patients; differences are paired by patient.",
    ]


def _distances(row: Mapping[str, Any]) -> list[str]:
    return [row["name"], *(format_interval(row[name], DIGITS.get(name, ".2f")) for name in HEADS)]


def _copies(row: Mapping[str, Any]) -> list[str]:
    distance = format_figure(row["nearest_training_distance"], ".2f")
    return [row["name"], distance, format_figure(row["copying"], ".2f")]


def _pictures(row: Mapping[str, Any]) -> str:
    lines = [f"![{row['name']}]({name})" for name in row["pictures"]]
    return f"### {row['name']}\n\n" + "\n\n".join(lines)
