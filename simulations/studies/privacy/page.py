"""The page of the study, its table and its figure."""

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mediffusion_core.common.files import replacing
from mediffusion_core.evaluation.membership_inference import FALSE_POSITIVE_RATE
from mediffusion_core.reporting.formats import NOT_MEASURED
from mediffusion_core.reporting.pages import render_page
from mediffusion_core.reporting.report import run_warnings
from mediffusion_core.run_io.provenance import shorten
from simulations.engine.cells import RUN
from simulations.studies.audit.study import CONFIDENCE
from simulations.studies.privacy import answers
from simulations.studies.privacy.cells import PROMISE, epsilon_text
from simulations.studies.privacy.chart import CHART, save_tradeoff
from simulations.studies.privacy.page_template import PAGE
from simulations.studies.privacy.plan import Work
from simulations.studies.privacy.promises import ranged
from simulations.studies.privacy.summary import Point, points_of
from simulations.studies.privacy.table import rows_of, write_table
from simulations.studies.run_cells import COMMIT
from simulations.studies.sentences import written

RESULTS_PAGE = "results.html"


class Shown(NamedTuple):
    """One table of the page."""

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def write_page(work: Work) -> Path:
    """Writes the page, the table and the figure from the cells that have finished.

    Of the cells nothing but their figures and their commits matters: not when they ran, nor how
    long they took.

    Returns:
        The written page.
    """
    study = work.study
    study.mkdir(parents=True, exist_ok=True)
    rows = rows_of(work)
    points = points_of(rows)
    write_table(rows, study)
    chart = ""
    if points:
        save_tradeoff(points, rows, study / CHART)
        chart = base64.b64encode((study / CHART).read_bytes()).decode()
    sentences = [
        answers.was_run(work.plan, len(work.finished())),
        *answers.utility(points),
        *answers.leakage(points),
        *answers.audited(work, points),
        *_not_measured(work),
    ]
    boxes = [
        ("The audit contradicts the promise", answers.alarms(work), ""),
        (
            "An attack finds more than the promise allows",
            answers.suspicions(rows, points),
            " suspect",
        ),
    ]
    text = render_page(
        PAGE,
        first=_unbroken(" ".join(sentences)),
        boxes=[box for box in boxes if box[1]],
        chart=chart,
        tables=[_utility(points), _leakage(points), *_attacks(points), _promise(work)],
        facts=list(_facts(work)),
        warnings=_warnings(work),
    )
    path = study / RESULTS_PAGE
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _unbroken(text: str) -> str:
    """A text whose equations and negative numbers are not broken into two lines."""
    text = text.replace("ε = ", "ε\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    return re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text)


def _not_measured(work: Work) -> list[str]:
    """Why measurements were not possible, each reason once."""
    reasons = dict.fromkeys(
        f"{cell.measure}: {reason}"
        for cell in work.measures
        if (reason := cell.not_measured(work.study))
    )
    return [f"Not measured: {'; '.join(reasons)}."] if reasons else []


def _utility(points: Sequence[Point]) -> Shown:
    headings = ["ε", "runs", "macro AUC", "AUC difference", "ECE", "FID"]
    lines = [
        [
            epsilon_text(one.epsilon),
            str(one.runs),
            written(one.auc, ".3f"),
            written(one.auc_difference, "+.3f"),
            written(one.ece, ".3f"),
            written(one.fid, ".0f"),
        ]
        for one in points
    ]
    notes = [
        "On the public test set. Means over the seeds with Student's 95 % intervals, which contain "
        "the variation of splits, first weights and noise. Differences are from the largest ε, "
        "paired by seed."
    ]
    if points and not any(one.fid.count for one in points):
        notes.append("No FID: these runs do not train the denoiser.")
    return Shown("Utility", headings, lines, notes)


def _leakage(points: Sequence[Point]) -> Shown:
    stages = list(dict.fromkeys(audit.stage for one in points for audit in one.audits))
    rate = f"{FALSE_POSITIVE_RATE:.0%}"
    headings = ["ε", f"best attack, TPR at {rate} FPR", "allowed by the promise", "best attack is"]
    headings += [f"audited ε, {stage} (of promised)" for stage in stages]
    headings += ["can be proven"] if stages else []
    lines = []
    for one in points:
        best = one.best
        cells = [
            epsilon_text(one.epsilon),
            f"{best.value:.1%}" if best else "-",
            f"{one.largest_tpr:.1%}" if math.isfinite(one.largest_tpr) else "-",
            best.of if best else "-",
        ]
        audits = {audit.stage: audit for audit in one.audits}
        for stage in stages:
            audit = audits.get(stage)
            cells.append(_audit_text(audit.lower_bound, audit.promised) if audit else "-")
        if stages:
            cells.append(f"{max(a.provable for a in one.audits):.2f}" if one.audits else "-")
        lines.append(cells)
    notes = [
        "The best attack is the largest of all attacks and seeds, chosen after the fact, so a "
        f"value somewhat above {rate} is expected of guessing. A failed attack proves nothing.",
        "The audit makes the private steps again with canaries, units whose gradient is one "
        "direction (arXiv 2305.08846), and reads no image. Its bound holds with "
        f"{CONFIDENCE:.0%} confidence and cannot exceed what its number of canaries can prove. "
        "Shown is the seed whose bound is the nearest to its promise.",
    ]
    return Shown("Leakage", headings, lines, notes)


def _audit_text(bound: float, promised: float) -> str:
    limit = "∞" if promised > 1e6 else f"{promised:.2f}"
    return f"{bound:.2f} of {limit}"


def _attacks(points: Sequence[Point]) -> Iterator[Shown]:
    names = list(dict.fromkeys(name for one in points for name in one.attacks))
    if not names:
        return
    headings = ["attack", *(f"ε = {epsilon_text(one.epsilon)}" for one in points)]
    for title, place, spec in (
        ("AUC of each attack", 0, ".2f"),
        (f"TPR of each attack at {FALSE_POSITIVE_RATE:.0%} false positives", 1, ".1%"),
    ):
        lines = [
            [
                name,
                *(
                    written(one.attacks[name][place], spec) if name in one.attacks else "-"
                    for one in points
                ),
            ]
            for name in names
        ]
        yield Shown(title, headings, lines)


def _promise(work: Work) -> Shown:
    found: dict[float, list[Mapping[str, float | None]]] = {}
    for key in work.finished():
        if attacked := work.measure(key, "attack").measured(work.study):
            found.setdefault(key[0], []).append(attacked[PROMISE])
    names = list(dict.fromkeys(name for runs in found.values() for one in runs for name in one))
    lines = [
        [epsilon_text(epsilon), *(ranged(runs, name) for name in names)]
        for epsilon, runs in sorted(found.items())
    ]
    notes = [
        "Of the site of the largest ε in each run; ε covers all steps of both stages and the noisy "
        "counts and sums before them. σ is the noise's standard deviation over the bound of a "
        "unit's gradient, q the probability that a unit is in a step.",
        "μ is of Gaussian DP (arXiv 1905.02383): to tell whether a unit took part is about as "
        "hard as to tell N(0, 1) from N(μ, 1) by one draw; fitted at δ from 1e-6 to 0.3. The ε of "
        "a group of units is at the same δ (arXiv 2401.10294).",
    ]
    return Shown("Promise", ["ε", *names], lines, notes)


def _facts(work: Work) -> Iterator[tuple[str, str]]:
    settings = next(iter(work.runs.values())).settings
    privacy = settings.privacy
    commits = dict.fromkeys(
        (cell.figures(work.study) or {}).get(COMMIT)
        for cell in (*work.runs.values(), *work.measures)
    )
    yield "Base run", " ".join(work.plan.base)
    yield "Unit", f"one {privacy.unit} of a site"
    yield "Neighbouring data", f"one {privacy.unit} more or less (add or remove)"
    yield "δ", f"{privacy.target_delta:g}"
    yield "Sampling", "Poisson: each unit enters each step independently with probability q"
    yield "Clipping", f"{privacy.clipping}, to a norm of {privacy.max_grad_norm:g}"
    yield "Trained", f"autoencoder {privacy.autoencoder}, joint network: {privacy.trained}"
    yield "Canaries", str(work.plan.canaries)
    yield "Commits", ", ".join(shorten(one) for one in commits if one) or NOT_MEASURED


def _warnings(work: Work) -> list[list[str]]:
    """The warnings in the report of each finished run."""
    return [
        [work.runs[key].title, one.text]
        for key in work.finished()
        for one in run_warnings(work.runs[key].folder(work.study) / RUN)
    ]
