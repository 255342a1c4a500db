"""The figures of `fed-mediffusion evaluate` as tables in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mediffusion_core.reporting.formats import (
    NOT_MEASURED,
    count,
    interval,
    markdown_table,
    number,
)

Figures = Mapping[str, Any]

SECOND = "against"
TOO_FEW = "suppressed or absent"


def evaluation_table(summary: Figures) -> str:
    """Tables of a model's figures over all sites, and of its difference from a second model.

    Args:
        summary: With the keys of `server.model_evaluation`.
    """
    parts = [_model("Model", summary["model"])]
    if SECOND in summary:
        parts.append(_model("Second model", summary[SECOND]))
        parts.append(_difference(summary["difference"]))
    for one in summary["set_aside"]:
        parts.append(f"{one['site']} does not count: {one['reason']}.")
    return "\n\n".join(parts) + "\n"


def _model(title: str, figures: Figures) -> str:
    calibration = figures["calibration"]
    lines = [
        f"## {title}",
        "",
        f"Macro AUC {number(figures['auc'])}{_95(figures['auc_interval'])} over "
        f"{count(figures['images'])} images of {len(figures['sites'])} sites. Calibration error "
        f"{number(calibration['error'])}, Brier score {number(calibration['brier'])} at "
        f"temperature {number(calibration['temperature'], 2)}; without it "
        f"{number(calibration['error_uncalibrated'])} and "
        f"{number(calibration['brier_uncalibrated'])}.",
        "",
        *markdown_table(("class", "AUC (95 %)", "with", "without"), _classes(figures)),
        "",
        *markdown_table(("site or subgroup", "macro AUC", "images", "sites"), _parts(figures)),
    ]
    return "\n".join(lines)


def _classes(figures: Figures) -> Iterator[Sequence[str]]:
    for name, area in figures["auc_per_class"].items():
        of_class = figures["images_per_class"][name]
        within = _95(figures["auc_interval_per_class"][name])
        counts = (count(of_class["with"]), count(of_class["without"]))
        yield name, f"{number(area)}{within}", *counts


def _parts(figures: Figures) -> Iterator[Sequence[str]]:
    for site, own in figures["sites"].items():
        yield site, number(own["auc"]), count(own["images"]), ""
    for attribute, subgroups in figures["subgroups"].items():
        for subgroup, own in subgroups.items():
            title = f"{attribute} {subgroup}"
            if own["sites"]:
                yield title, number(own["auc"]), count(own["images"]), count(own["sites"])
            else:
                yield title, TOO_FEW, "", ""


def _difference(figures: Figures | None) -> str:
    title = "## Difference, model minus second model"
    if figures is None:
        return f"{title}\n\n{NOT_MEASURED}: a site has answered for one of the two models alone"
    rows = [("macro", _signed(figures["auc"], figures["auc_interval"]))]
    rows += [
        (name, _signed(value, figures["auc_interval_per_class"][name]))
        for name, value in figures["auc_per_class"].items()
    ]
    said = f"Paired bootstraps over patients; two-sided p of the macro AUC {number(figures['p'])}."
    return "\n".join((title, "", said, "", *markdown_table(("class", "AUC (95 %)"), rows)))


def _95(bounds: Any) -> str:
    text = interval(bounds)
    return f" ({text})" if text else ""


def _signed(value: Any, bounds: Any) -> str:
    text = number(value)
    sign = "+" if text[0].isdigit() else ""
    return f"{sign}{text}{_95(bounds)}"
