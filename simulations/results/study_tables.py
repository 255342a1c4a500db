"""The README's tables of studies of trained runs: counterfactuals, explanations, samples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.run_io.provenance import shorten
from simulations.results.figures import (
    format_estimate,
    format_figure,
    format_interval,
    markdown_table,
)
from simulations.studies.generation.tables import HEADS, usefulness_table
from simulations.studies.guidance.tables import MAIN, Column

Figures = Mapping[str, Any]

COUNTERFACTUAL = (
    ("flipped by the model", "flipped", ".0%"),
    ("by the ResNet-18 trained apart", "independent_flipped", ".0%"),
    ("other findings moved by", "off_target", ".3f"),
    ("energy of the change within the mask, widened by 2 px", "energy_inside", ".0%"),
    ("change of a pixel inside by that outside", "inside_outside", ".1f"),
    ("L1 to the source", "l1", ".3f"),
    ("SSIM", "ssim", ".2f"),
    ("LPIPS", "lpips", ".3f"),
)
AGAINST = tuple(column for column in MAIN if column[1] not in ("target_change", "l2"))
EXPLANATION = (
    ("deletion ↓", "deletion", ".2f"),
    ("insertion ↑", "insertion", ".2f"),
    ("pointing ↑", "pointing", ".0%"),
    ("inside the mask ↑", "inside", ".0%"),
    ("flipped", "flipped", ".0%"),
)
SAMPLES = {"fid": ".0f", "kid": ".2f", "precision": ".2f", "recall": ".2f", "coverage": ".2f"}


def counterfactual_tables(studies: Sequence[Path]) -> str:
    """Ours, a column a study; then every method of those studies that compared several.

    Raises:
        UserError: a folder holds no finished study of guidance.
    """
    found = [_study(folder, "fid_floor") for folder in studies]
    columns = [next(row for row in one["rows"] if row["method"] == "ours") for one in found]
    lines = [
        [title, *(_estimate(row["figures"].get(name), spec) for row in columns)]
        for title, name, spec in COUNTERFACTUAL
    ]
    sources = [next(row for row in one["rows"] if row["method"] == "source") for one in found]
    distances = [
        f"{row['fid']:.0f}; {source['fid']:.0f}; {one['fid_floor']:.0f}"
        for row, source, one in zip(columns, sources, found, strict=True)
    ]
    lines += [
        ["FID; of the sources through the autoencoder; as they are", *distances],
        ["seconds an image", *map(_seconds, columns)],
        [
            "macro AUC of the ResNet-18",
            *(format_figure(one["independent"]["auc_macro"]) for one in found),
        ],
        ["made by", *map(made_by, found)],
    ]
    titles = [f"{one['data']}, {one['images']['test']} images" for one in found]
    parts = [markdown_table(["", *titles], lines)]
    parts += [_methods(one) for one in found if len(one["rows"]) > 2]
    return "\n\n".join(parts)


def _methods(study: Figures) -> str:
    lines = [
        [row["method"], *_estimates(row, AGAINST), f"{row['fid']:.0f}", _seconds(row)]
        for row in study["rows"]
    ]
    headings = ["method", *(heading for heading, *_ in AGAINST), "FID", "s an image"]
    title = f"Methods on {study['images']['test']} images of {study['data']}"
    return _titled(title, study, headings, lines)


def explanation_tables(studies: Sequence[Path]) -> str:
    """Every method's maps, a table a study.

    Raises:
        UserError: a folder holds no finished study of explanations.
    """
    headings = ["method", *(heading for heading, *_ in EXPLANATION), "s an image"]
    parts = []
    for study in (_study(folder, "ours_less") for folder in studies):
        lines = [
            [row["method"], *_estimates(row, EXPLANATION), _seconds(row)] for row in study["rows"]
        ]
        title = f"{study['images']} images of {study['data']}"
        parts.append(_titled(title, study, headings, lines))
    return "\n\n".join(parts)


def sample_tables(studies: Sequence[Path]) -> str:
    """Real images and samples, a table a study, and what can be learned from samples.

    Raises:
        UserError: a folder holds no finished study of generation.
    """
    headings = ["images", *(HEADS[name] for name in SAMPLES), "as asked ↑"]
    parts = []
    for study in (_study(folder, "sets") for folder in studies):
        lines = [
            [
                row["name"],
                *(format_interval(row[name], spec) for name, spec in SAMPLES.items()),
                _obedience(study, row),
            ]
            for row in study["sets"]
        ]
        title = f"{study['count']} images of {study['data']} a set"
        parts.append(_titled(title, study, headings, lines))
        if study.get("usefulness") is not None:  # of a study before there was one
            parts.append(usefulness_table(study["usefulness"]))
    return "\n\n".join(parts)


def _obedience(study: Figures, row: Figures) -> str:
    """How well the model's classifier finds what a set was asked to show."""
    value = study.get("obedience_real") if row.get("key") == "real" else row.get("obedience")
    return "-" if value is None else format_figure(value)


def _titled(
    title: str, study: Figures, headings: Sequence[str], lines: Sequence[Sequence[str]]
) -> str:
    return f"{title} ({made_by(study)}):\n\n{markdown_table(headings, lines)}"


def _study(folder: Path, holding: str) -> Figures:
    results = read_study(folder)
    if holding not in results or "data" not in results:
        raise UserError(f"{folder} holds another study, or one of an older version")
    return results


def read_study(study: Path) -> dict[str, Any]:
    """Results of a finished study, from its folder or its `results.json`.

    Raises:
        UserError: it is not there, or no JSON.
    """
    return read_finished(study / "results.json" if study.is_dir() else study, "study")


def read_finished(path: Path, what: str) -> dict[str, Any]:
    """The JSON that a finished run or study has left.

    Raises:
        UserError: it is not there, or no JSON; `what` names it.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{path.parent} holds no finished {what} (no readable {path.name})"
        ) from None
    return content


def made_by(figures: Figures) -> str:
    """By which seed, commit and settings, so that the figures can be made again."""
    made = f"seed {figures['seed']}, commit {shorten(figures['commit'])}"
    return f"{made}, settings {figures['settings_hash'][:8]}"


def _estimates(row: Figures, columns: Sequence[Column]) -> list[str]:
    return [_estimate(row["figures"].get(name), spec) for _, name, spec in columns]


def _seconds(row: Figures) -> str:
    return f"{row['seconds_per_image']:.2f}"


def _estimate(figure: Figures | None, spec: str) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    return format_estimate(Estimate(**figure), spec, counted=False)
