"""The report of a run: one HTML page beside the run's files, readable from disk, offline."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting import first_screen
from mediffusion_core.reporting.counterfactual_pair import read_pair
from mediffusion_core.reporting.failure_signatures import Warned, failure_signatures
from mediffusion_core.reporting.first_screen_page import SCRIPT
from mediffusion_core.reporting.formats import (
    NOT_MEASURED,
    count,
    duration,
    inside,
    interval,
    measured,
    number,
    percent,
)
from mediffusion_core.reporting.headline import headline
from mediffusion_core.reporting.pages import render_page
from mediffusion_core.reporting.report_page import PAGE, POLICY
from mediffusion_core.run_io.provenance import shorten
from mediffusion_core.run_io.run_folder import EVALUATION, STAGES

CAPTIONS = {
    "samples": "Images drawn from the global model.",
    "reconstructions": "Images above, what the autoencoder makes of them below, PSNR under each.",
    "counterfactuals": "The same image, changed to have another finding. Difference: "
    "counterfactual minus source on one scale, blue darker, brown brighter. Probabilities are "
    "the model's own, before and after.",
    "curves": "Losses, reconstruction, AUC, FID and KID over the rounds.",
    "sites": "Images of each site, by use and per class.",
}
"""File name (without a suffix such as `_round_5`) to caption, in the order of the page."""
CHARTS = ("curves", "sites")
"""Pictures without photographs, whose colours follow those of the page."""


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run's folder from what the run has left there so far.

    Returns:
        The path of the page.

    Raises:
        UserError: as `report_page`.
    """
    target = folder / "report.html"
    target.write_text(report_page(folder), encoding="utf-8")
    return target


def report_page(folder: Path, figures: Mapping[str, Any] | None = None) -> str:
    """The report of a run's folder, as HTML.

    Reads `summary.json`, `settings.json`, `metrics.jsonl` and `pictures/`; each may be absent. A
    figure that is absent or null reads "not measured".

    Args:
        folder: Of the run.
        figures: Instead of those in `summary.json`, for a run that has none yet.

    Raises:
        UserError: if the folder does not exist or one of the files is not as a run writes it.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist; give the folder of a run")
    summary = _mapping(folder / "summary.json") if figures is None else figures
    settings = _mapping(folder / "settings.json")
    history = _history(folder / "metrics.jsonl")
    return render_page(
        PAGE,
        **_first_screen(summary, settings, folder),
        warnings=failure_signatures(summary, settings, history),
        script=SCRIPT,
        policy=POLICY,
        facts=[*_facts(summary), ("Privacy", _privacy(summary, settings))],
        cards=headline(summary),
        classes=_classes(summary),
        sites=_sites(summary),
        set_aside=_set_aside(summary),
        counterfactual=_counterfactual(inside(summary, "counterfactual")),
        parameters=[(name, count(n)) for name, n in inside(summary, "parameters").items()],
        stages=_stages(history),
        evaluations=_evaluations(history),
        pictures=_pictures(folder / "pictures"),
        settings=json.dumps(settings, indent=2, ensure_ascii=False) if settings else "",
        not_measured=NOT_MEASURED,
    )


def run_warnings(folder: Path) -> list[Warned]:
    """The warnings in the report of a run's folder.

    Raises:
        UserError: as `report_page`.
    """
    summary, settings = _mapping(folder / "summary.json"), _mapping(folder / "settings.json")
    return failure_signatures(summary, settings, _history(folder / "metrics.jsonl"))


def _first_screen(
    summary: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    title = str(summary.get("experiment") or folder.resolve().name)
    pair = read_pair(folder / "pictures")
    return {
        "title": title,
        "status": str(summary.get("status") or "unknown"),
        "heading": first_screen.heading(summary, settings, title),
        "data": first_screen.data_sentences(summary, settings),
        "quality": first_screen.quality(summary, settings),
        "pair": pair,
        "texts": pair and first_screen.pair_texts(pair, inside(summary, "counterfactual")),
        "no_pair": first_screen.no_pair(settings),
    }


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    texts = {
        "Duration": duration(summary.get("seconds")),
        "Rounds": count(summary.get("rounds")),
        "Selected round": count(summary.get("selected_round")),
        "Seed": str(summary["seed"]) if summary.get("seed") is not None else "unknown",
        "Commit": shorten(summary.get("commit")),
        "Settings hash": str(summary.get("settings_hash") or "unknown"),
    }
    return [(name, "unknown" if text == NOT_MEASURED else text) for name, text in texts.items()]


def largest_epsilon(summary: Mapping[str, Any]) -> float | None:
    """ε of the units that the run costs most; None where a site, maybe theirs, has none."""
    privacy = inside(summary, "privacy")
    spent = [measured(one.get("epsilon")) for one in inside(privacy, "sites").values()]
    if "validation_epsilon" in privacy:
        spent.append(measured(privacy["validation_epsilon"]))
    known = [epsilon for epsilon in spent if epsilon is not None]
    return max(known) if known and len(known) == len(spent) else None


def audited(summary: Mapping[str, Any]) -> str:
    """The measured lower bounds of ε by stage, as part of a sentence; empty without an audit."""
    stages = inside(inside(summary, "audit"), "stages")
    found = [
        f"{stage} at least {number(one.get('lower_bound'), 2)} of {number(one.get('epsilon'), 2)}, "
        f"where {number(one.get('largest_bound'), 2)} could be shown"
        for stage, one in stages.items()
        if isinstance(one, Mapping)
    ]
    measured_as = "measured on synthetic units with 95 % confidence"
    return f" ({measured_as}: {'; '.join(found)})" if found else ""


def _privacy(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    if not settings:
        return "unknown"
    units = inside(settings, "privacy")
    sites = inside(inside(settings, "federation"), "client_level")
    promises = []
    if units.get("enabled"):
        epsilon, delta = number(largest_epsilon(summary), 2), units.get("target_delta")
        promises.append(
            f"ε {epsilon} for one {units.get('unit')} at δ {delta}, for the planned rounds of this "
            f"run{audited(summary)}; each site's ledger also counts repeated rounds and other runs"
        )
        if (shared := inside(units, "secure_aggregation")).get("enabled"):
            promises.append(
                "by secure aggregation for sums over the sites, if at most "
                f"{shared.get('tolerated_sites')} of them drop out of a round, collude with the "
                "server or read the sums"
            )
    if sites.get("noise_multiplier"):
        epsilon = number(inside(summary, "client_level").get("epsilon"), 2)
        promises.append(f"ε {epsilon} for a whole site at δ {sites.get('target_delta')}")
    return "; ".join(promises) or "no differential privacy"


def _classes(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, figures in inside(summary, "auc_per_class").items():
        figures = figures or {}
        dot = measured(figures.get("auc"))
        bounds = "" if dot is None else interval(figures.get("interval"))
        rows.append(
            {
                "name": name,
                "auc": number(figures.get("auc")),
                "dot": dot,
                "interval": bounds,
                "bounds": [float(x) for x in figures["interval"]] if bounds else None,
                "positives": count(figures.get("positives")),
            }
        )
    return rows


def _sites(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    census, auc = inside(summary, "census"), inside(summary, "auc_per_site")
    keys = ("images", "patients", "train", "labelled", "validation", "test")
    return [
        (name, [count(inside(census, name).get(key)) for key in keys] + [number(auc.get(name))])
        for name in dict.fromkeys([*census, *auc])
    ]


def _set_aside(summary: Mapping[str, Any]) -> list[list[str]]:
    """Replies that did not count: stage and round, site, kind of message, reason."""
    return [
        [f"{one['stage']} {one['round']}", one["site"], one["kind"], one["reason"]]
        for one in summary.get("set_aside", ())
    ]


def _counterfactual(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        ("Images", count(figures.get("count")), "test images that were changed"),
        ("To be flipped", count(figures.get("eligible")), "not classified as the target before"),
        ("Flip rate", percent(figures.get("flip_rate")), "of those classified as the target after"),
        ("Change in the image", number(figures.get("l1"), 4), "mean |difference|, range 0 to 1"),
        (
            "Change in other classes",
            number(figures.get("off_target"), 4),
            "mean |change| of the probabilities outside the target",
        ),
        ("Time an image", number(figures.get("seconds_per_image"), 2, " s"), ""),
    ]


def _stages(history: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for stage in STAGES:
        lines = [line for line in history if line.get("stage") == stage]
        if lines:
            rows.append(
                {
                    "name": stage,
                    "round": count(max(measured(line.get("round")) or 0 for line in lines)),
                    "rounds": count(lines[-1].get("rounds")),
                    "time": duration(lines[-1].get("time")),
                }
            )
    return rows


def _evaluations(history: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    by_round = {line["round"]: line for line in history if line.get("stage") == EVALUATION}
    return [
        [
            count(index),
            number(line.get("auc_macro")),
            number(line.get("auc_pooled")),
            number(line.get("fid"), 1),
            number(line.get("kid"), 4),
            percent(inside(line, "counterfactual").get("flip_rate")),
        ]
        for index, line in sorted(by_round.items())
    ]


def _pictures(folder: Path) -> list[dict[str, Any]]:
    known = list(CAPTIONS)

    def order(path: Path) -> tuple[int, str]:
        kind = _kind(path.stem)
        return (known.index(kind) if kind else len(known), path.name)

    return [
        {
            "source": f"pictures/{quote(path.name)}",
            "name": path.stem.replace("_", " ").capitalize(),
            "caption": CAPTIONS.get(_kind(path.stem) or "", ""),
            "is_chart": _kind(path.stem) in CHARTS,
        }
        for path in sorted(folder.glob("*.png"), key=order)
    ]


def _kind(stem: str) -> str | None:
    return next((kind for kind in CAPTIONS if stem == kind or stem.startswith(f"{kind}_")), None)


def _mapping(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not valid JSON; restore the run's own file") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def _history(path: Path) -> list[Mapping[str, Any]]:
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8").splitlines()
    lines: list[Mapping[str, Any]] = []
    for place, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            # A run that was stopped while writing leaves half a line at the end, and only there.
            if place < len(texts):
                raise UserError(f"{path} line {place} is not valid JSON") from None
    return lines
