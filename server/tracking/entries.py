"""The figures and pictures that trackers get, by allow-list.

A tracker may send them to another machine. It therefore gets losses and figures of evaluations, and
neither the counts of the census nor the reasons why a reply did not count. Of the pictures it gets
those of public test images: a sample may resemble an image that a model was trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mediffusion_core.run_io.run_folder import EVALUATION, RunFolder
from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS, LOSSES
from server.tracking.tracker import Entry

STAGES = ("autoencoder", "latents", "joint", EVALUATION)
FIGURES = frozenset(
    {
        *LOSSES,
        "psnr",
        "auc_macro",
        "auc_per_class",
        "auc_per_site",
        "auc_pooled",
        "auc_pooled_per_class",
        "calibration",
        "fid",
        "fid_floor",
        "kid",
        "kid_std",
        "diversity",
        "counterfactual",
    }
)
"""Of a line, with all numbers within them."""
OF_SITES = {"sites": ALLOWED_METRICS, "traffic": frozenset({"bytes_received", "bytes_sent"})}
"""Of a line, by site."""


def entries(folder: RunFolder, history: Sequence[Mapping[str, Any]], start: int) -> Iterator[Entry]:
    """The entries of a run's lines from a place on; other stages have none.

    Args:
        folder: Of the run.
        history: All its lines.
        start: Number of the first line, from 0.
    """
    drawn = [place for place, line in enumerate(history) if "psnr" in line]
    for place, line in enumerate(history):
        if place >= start and line["stage"] in STAGES:
            stage, number = line["stage"], line["round"]
            yield Entry(
                place,
                stage,
                number,
                line["time"],
                dict(_figures(line)),
                dict(_pictures(folder, stage, number, is_drawn=drawn[-1:] == [place])),
            )


def _figures(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    stage = line["stage"]
    for name, value in line.items():
        if name in FIGURES:
            yield from _numbers(f"{stage}/{name}", value)
    for group, allowed in OF_SITES.items():
        for site, figures in line.get(group, {}).items():
            for name in sorted(figures.keys() & allowed):
                yield from _numbers(f"{stage}/{group}/{site}/{name}", figures[name])


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """A number by its name, and those within a mapping; no lists, and no figure that is missing."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _pictures(
    folder: RunFolder, stage: str, number: int, is_drawn: bool
) -> Iterator[tuple[str, Path]]:
    """Pictures of test images; of reconstructions the folder has the last ones alone."""
    reconstructions = folder.pictures / "reconstructions.png"
    counterfactuals = folder.round_pictures(number) / "counterfactuals.png"
    if is_drawn and reconstructions.is_file():
        yield "pictures/reconstructions", reconstructions
    if stage == EVALUATION and counterfactuals.is_file():
        yield "pictures/counterfactuals", counterfactuals
