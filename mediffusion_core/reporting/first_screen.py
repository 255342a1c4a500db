"""The first screen of the report: a run in sentences for readers who train no networks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mediffusion_core.reporting.counterfactual_pair import ClassChange, CounterfactualPair, change
from mediffusion_core.reporting.formats import (
    NOT_MEASURED,
    count,
    inside,
    interval,
    measured,
    number,
    percent,
)

CHANCE = 0.5
NAMED_CLASSES = 14
"""Classes that the sentence names; of more it tells how many."""


class Quality(NamedTuple):
    """How well the model classifies: a figure where there is one, and sentences."""

    auc: str
    interval: str
    scale: tuple[float, float, float] | None
    """AUC and the ends of its interval; without an interval all three are the AUC."""
    sentences: tuple[str, ...]


class Change(NamedTuple):
    """A probability before and after, as texts and in percent for the bars."""

    name: str
    before: str
    after: str
    widths: tuple[float, float]


class PairTexts(NamedTuple):
    """A counterfactual in words."""

    heading: str
    alt: str
    counterfactual_alt: str
    changes: tuple[Change, ...]
    facts: tuple[tuple[str, str], ...]
    outcome: str


def heading(summary: Mapping[str, Any], settings: Mapping[str, Any], title: str) -> str:
    """The kind of model and the number of sites; the title of a run whose sites are not known."""
    sites = len(_sites(summary))
    if not sites:
        return title
    federation = inside(settings, "federation")
    if federation.get("only_site") is not None:
        where = f"trained at the site {federation['only_site']} alone"
    elif federation.get("pool_sites"):
        where = f"trained on the pooled images of {_plural(sites, 'site')}"
    else:
        where = f"trained at {_plural(sites, 'site')}"
    kind = "An image classifier" if _trains(settings, "classification") else "An image generator"
    return f"{kind} {where}"


def data_sentences(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The images and patients of the sites, the labelled share, and the classes.

    A count that a site did not send leaves its part of the sentence out.
    """
    sites = _sites(summary)
    images, patients = _total(sites, "images"), _total(sites, "patients")
    train, labelled = _total(sites, "train"), _total(sites, "labelled")
    phantom = inside(settings, "data").get("source") == "phantom"
    found = []
    if images:
        unit = "phantom patients" if phantom else "patients or lesions"
        whose = f" of {count(patients)} {unit}" if patients else ""
        found.append(f"The sites hold {count(images)} images{whose}.")
    if train and train > 0:  # a noised count may be below 0
        noised = "About " if inside(settings, "privacy").get("enabled") else ""
        noun = "of them" if images else "images"
        trained = f"{noised}{count(train)} {noun} trained the model"
        if labelled is not None:
            trained += f"; {_bounded(min(max(labelled / train, 0.0), 1.0))} of these had labels"
        found.append(f"{trained}.")
    if phantom:
        found.append("Phantoms are drawings by a program: nothing here is of a person.")
    names = list(inside(summary, "auc_per_class"))
    if names and len(names) <= NAMED_CLASSES:
        found.append(f"Classes: {', '.join(names)}.")
    elif names:
        found.append(f"{len(names)} classes.")
    return found


def no_pair(settings: Mapping[str, Any]) -> str:
    """Why the first screen has no counterfactual."""
    for part, name in (("classification", "classifier"), ("diffusion", "denoiser")):
        if not _trains(settings, part):
            return f"There are no counterfactuals: the {name} of this run was not trained."
    return "This run folder has no counterfactual."


def quality(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Quality:
    """The AUC on the test set, or that of the sites' validation patients, and its meaning."""
    if not _trains(settings, "classification"):
        return Quality("", "", None, ("The classifier of this run was not trained.",))
    on_test_set = measured(summary.get("auc_macro")) is not None
    key, per_class = (
        ("auc_macro", "auc_per_class") if on_test_set else ("auc_pooled", "auc_pooled_per_class")
    )
    auc = measured(summary.get(key))
    if auc is None:
        return Quality("", "", None, (f"The AUC was {NOT_MEASURED}.",))
    bounds: Any = summary.get(f"{key}_interval")
    text = interval(bounds)
    low, high = (float(bounds[0]), float(bounds[1])) if text else (auc, auc)
    sentences = [
        "Take one image with a class and one without it: the model gives the higher score to the "
        f"right one in {_of_a_hundred(auc)} of 100 such pairs. Guessing gives 50.",
        _where_measured(on_test_set, _measured_classes(inside(summary, per_class))),
    ]
    if text and low <= CHANCE <= high:
        sentences.append("The interval includes 0.5: this result is not distinct from guessing.")
    elif text and high < CHANCE:
        sentences.append("This is worse than guessing.")
    return Quality(number(auc), text, (auc, low, high), tuple(sentences))


def _measured_classes(per_class: Mapping[str, Any]) -> int:
    """How many classes have an AUC, each a number or a mapping with it."""
    values = (one.get("auc") if isinstance(one, Mapping) else one for one in per_class.values())
    return sum(measured(value) is not None for value in values)


def _where_measured(on_test_set: bool, classes: int) -> str:
    mean = f"Mean of {classes} classes," if classes > 1 else "Measured"
    if on_test_set:
        return f"{mean} on test images on which no site trained."
    return (
        f"{mean} on validation patients of the sites. They also chose the model, "
        "so that the figure may be too high."
    )


def pair_texts(pair: CounterfactualPair, figures: Mapping[str, Any]) -> PairTexts:
    """The texts beside an image and its counterfactual.

    Args:
        pair: The two images with the probabilities.
        figures: `counterfactual` of the summary, over all images of the panel.
    """
    words = f"Counterfactual: {change(pair.target)}"
    changes = tuple(map(_change, pair.named))
    before = ", ".join(f"{one.name} {one.before}" for one in changes)
    after = ", ".join(f"{one.name} {one.after}" for one in changes)
    other = pair.most_changed_other
    facts = [("Mean change of brightness", percent(pair.l1, 1))]
    if other is not None:
        text = f"{other.name}, {_bounded(other.before)} → {_bounded(other.after)}"
        facts.append(("Other class that changed most", text))
    eligible, rate = measured(figures.get("eligible")), measured(figures.get("flip_rate"))
    if eligible and rate is not None:
        text = f"{count(round(rate * eligible))} of {count(eligible)}"
        facts.append(("Test images whose prediction flipped", text))
    return PairTexts(
        heading=words,
        alt=f"Test image. Probabilities of the model: {before}.",
        counterfactual_alt=f"{words}. Probabilities of the model: {after}.",
        changes=changes,
        facts=tuple(facts),
        outcome={
            True: "The prediction flipped.",
            False: "The prediction did not flip.",
            None: "The model gave this prediction before the change, too.",
        }[pair.flipped],
    )


def _change(one: ClassChange) -> Change:
    widths = (100 * (one.before or 0.0), 100 * (one.after or 0.0))
    return Change(one.name, _bounded(one.before), _bounded(one.after), widths)


def _bounded(share: float | None) -> str:
    """A share or probability as a percentage that is never rounded to none or all."""
    if share is None or share in (0.0, 1.0):
        return percent(share)
    return "< 1 %" if share < 0.01 else "> 99 %" if share > 0.99 else percent(share)


def _of_a_hundred(auc: float) -> int:
    """The AUC in percent; 0 and 100 are left to an AUC of 0 and 1."""
    return round(100 * auc) if auc in (0.0, 1.0) else min(max(round(100 * auc), 1), 99)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _trains(settings: Mapping[str, Any], part: str) -> bool:
    """Whether the run trains a part; a run without settings counts as one that does."""
    joint = inside(inside(settings, "training"), "joint")
    return bool(joint.get(f"{part}_weight", 1.0))


def _sites(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in inside(summary, "census").values() if isinstance(one, Mapping)]


def _total(sites: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The sum over all sites; None where one of them did not send its count."""
    counts = [measured(site.get(key)) for site in sites]
    known = [one for one in counts if one is not None]
    return sum(known) if known and len(known) == len(counts) else None
