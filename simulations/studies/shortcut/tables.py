"""The study's sentences and its page in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.run_io.provenance import shorten
from simulations.results.figures import format_estimate, markdown_table
from simulations.studies.shortcut.decision import (
    FEWEST,
    LEAST_EFFECT,
    LEVEL,
    Decision,
)

NAMES = {"letter": "corner letter", "border": "border wedge", "line": "line of text"}


def sentences(tested: Sequence[Decision], mended: Sequence[Decision] | None) -> list[str]:
    """The outcome, one sentence for each used mark, and one more for the mended model."""
    used = [one for one in tested if one.used]
    said = [_use(one, "The classifier") for one in used]
    if not used:
        said.append(_none("The classifier", tested))
    if mended is None:
        return said
    left = [one for one in mended if one.used]
    said += [_use(one, "The mended classifier") for one in left]
    before = {(one.site, one.kind, one.label) for one in used}
    gone = [one for one in mended if (one.site, one.kind, one.label) in before and not one.used]
    said += [
        f"The mended classifier no longer uses {_mark(one)} for {one.label}: {_figures(one)}."
        for one in gone
    ]
    if not left:
        said.append(_none("The mended classifier", mended))
    return said


def _mark(one: Decision) -> str:
    return f"the {NAMES[one.kind]} of {one.site}"


def _use(one: Decision, subject: str) -> str:
    sign = "a sign of" if one.sign > 0 else "a sign against"
    return f"{subject} uses {_mark(one)} as {sign} {one.label}: {_figures(one)}."


def _none(subject: str, tested: Sequence[Decision]) -> str:
    return f"{subject} uses none of the {len(tested)} tested combinations of mark, site and class."


def _figures(one: Decision) -> str:
    figures = f"pasting it changes the log odds by {format_estimate(one.pasted, '+.2f')}"
    if one.removed.count:
        removed = Estimate(
            -one.removed.value, -one.removed.high, -one.removed.low, one.removed.count
        )
        figures += f", removing it by {format_estimate(removed, '+.2f')}"
    if one.concentration.count:
        place = format_estimate(one.concentration, ".1f")
        figures += f", and counterfactuals change its place {place} times as much as its area"
    return figures


def shortcut_page(
    results: Mapping[str, Any],
    said: Sequence[str],
    tested: Sequence[Decision],
    mended: Sequence[Decision] | None,
) -> str:
    """The page of the study.

    Args:
        results: As in `results.json`.
        said: The outcome.
        tested: Every mark of the model, by site and class.
        mended: The same of the mended model, None without one.
    """
    parts = [
        "# Shortcuts",
        "\n".join(f"- **{one}**" for one in said),
        _introduction(results),
        "## Marks that images of a site have",
        _table(tested, mended),
        "*Found*: test images of the site with the mark; *pasted*: rise of the class's log odds "
        "where the mark is pasted on images of the site without it; *removed*: fall where it is "
        "removed from images that have it; *place*: share of the change of counterfactuals "
        "without the class at the place of the mark, divided by its share of the pixels; *p*: "
        "corrected. Intervals are 95 % over patients, with the number of images. No other mark "
        f"was found on {FEWEST} images of a site.",
        "## All marks pasted on images of all sites",
        _pasted(results),
        "## Counterfactuals",
        "![Counterfactuals](panel.png)",
        "The box marks the place of the mark.",
    ]
    if results["truth"] is not None:
        parts += ["## Ground truth", _truth(results)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    mended = results["mended"]
    made = " and ".join(str(count) for count in results["counterfactuals"].values())
    other = "" if mended is None else f"; mended run `{mended['run']}`"
    return (
        f"Run `{results['run']}`{other}, seed {results['seed']}, commit "
        f"{shorten(results['commit'])}. {results['images']} test images, {made} "
        "counterfactuals. A mark is used if pasting it raises the log odds of the class by more "
        f"than {LEAST_EFFECT:g}, removing it lowers them by more than {LEAST_EFFECT:g}, and its "
        "place has more than its share of the change; or the same with the other sign of the log "
        "odds. The p-value of a mark is the largest of the three "
        f"one-sided ones, doubled and corrected by Holm's method for {results['tests']} "
        f"combinations of site, mark and class; the level is {LEVEL:g}."
    )


def _table(tested: Sequence[Decision], mended: Sequence[Decision] | None) -> str:
    models = [("", tested)] if mended is None else [("before", tested), ("mended", mended)]
    shown = {(one.site, one.kind, one.label) for one in tested if one.removed.count >= FEWEST}
    lines = [
        [
            one.site,
            NAMES[one.kind],
            one.label,
            *([name] if name else []),
            str(one.removed.count),
            format_estimate(one.pasted, "+.2f"),
            format_estimate(one.removed, "+.2f", counted=False),
            format_estimate(one.concentration, ".1f"),
            f"{one.p_value:.3f}",
            "**used**" if one.used else "no",
        ]
        for rows in zip(*(rows for _, rows in models), strict=True)
        for (name, _), one in zip(models, rows, strict=True)
        if (one.site, one.kind, one.label) in shown
    ]
    if not lines:
        return "None."
    model = ["model"] if mended is not None else []
    headings = ["site", "mark", "class", *model, "found", "pasted", "removed", "place", "p", ""]
    return markdown_table(headings, lines)


def _pasted(results: Mapping[str, Any]) -> str:
    rows, single = results["pasted"], results["mended"] is None
    classes = list(rows[0]["mean"])
    lines = [
        [
            *([] if single else [row["model"]]),
            NAMES[row["kind"]],
            *(f"{row['mean'][name]:+.2f}" for name in classes),
        ]
        for row in rows
    ]
    headings = [*([] if single else ["model"]), "mark", *classes]
    return "Mean change of the log odds of each class:\n\n" + markdown_table(headings, lines)


def _truth(results: Mapping[str, Any]) -> str:
    truth = results["truth"]
    shares = ", ".join(
        f"{'' if results['mended'] is None else f'{model} '}"
        f"{format_estimate(Estimate(**one), '.0%')}"
        for model, one in truth["energy_in_mask"].items()
    )
    return (
        f"The run planted the {NAMES[truth['kind']]} of {truth['site']} beside {truth['finding']}. "
        f"The study {'names' if truth['named'] else 'does not name'} it"
        f"{', and no other mark' if truth['named_alone'] else ''}. Share of the energy of the "
        "change in the mark's pixels, widened by 2, in counterfactuals without "
        f"{truth['finding']} of images with the mark: {shares}."
    )
