"""Warnings of a run's report: the ways in which joint training is known to fail.

Each has a threshold on figures that the run has. A figure that is missing gives no warning.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any, NamedTuple

from mediffusion_core.reporting.formats import inside, measured, number, percent
from mediffusion_core.run_io.run_folder import EVALUATION

AUC_DROP = 0.02
"""Drop of the pooled validation AUC from its best evaluation to the last one."""
LOSS_RISE = 0.05
"""Rise of the diffusion loss from its best quarter of the rounds to the last quarter."""
FEWEST_ROUNDS = 8
"""Joint rounds from which on their quarters are compared."""
LEAST_DIVERSITY = 0.5
"""Mean distance of two samples, as a share of that of two real images."""
LEAST_PSNR = 25.0
"""Of reconstructions, in dB."""
ADVERSARIAL_SHARE = 0.5
"""Flips by an independent classifier, as a share of those by the model."""
FEWEST_FLIPS = 0.2
"""Share of counterfactuals that flip the model, from which on the two are compared."""
LATENT_VARIANCES = (0.01, 100.0)
"""Smallest and largest variance of a latent channel before it is scaled."""

Figures = Mapping[str, Any]
History = Sequence[Figures]


class Warned(NamedTuple):
    """One warning."""

    name: str
    text: str


def failure_signatures(summary: Figures, settings: Figures, history: History) -> list[Warned]:
    """The warnings of a run.

    Args:
        summary: As `summary.json`.
        settings: As `settings.json`.
        history: The lines of `metrics.jsonl`.
    """
    found = {
        "labels over-fitted": _overfitted(history),
        "classification dominates": _dominated(settings, history),
        "samples collapsed": _collapsed(summary),
        "reconstructions blurred": _blurred(summary),
        "counterfactuals adversarial": _adversarial(summary),
        "latents badly scaled": _badly_scaled(history),
    }
    return [Warned(name, text) for name, text in found.items() if text]


def _overfitted(history: History) -> str:
    losses = {line["round"]: line.get("classification_loss") for line in _joint(history)}
    evaluated = {
        line["round"]: auc
        for line in history
        if line.get("stage") == EVALUATION and line["round"]
        if (auc := measured(line.get("auc_pooled"))) is not None
    }
    if len(evaluated) < 2:
        return ""
    best, last = max(evaluated, key=lambda one: evaluated[one]), max(evaluated)
    before, after = measured(losses.get(best)), measured(losses.get(last))
    if before is None or after is None or after >= before:
        return ""
    if evaluated[best] - evaluated[last] <= AUC_DROP:
        return ""
    return (
        f"From round {best} to {last} the classification loss fell from {number(before)} to "
        f"{number(after)}, and the pooled validation AUC from {number(evaluated[best])} to "
        f"{number(evaluated[last])}. The network over-fits its labels: train fewer rounds, or "
        "lower training.joint.classification_weight."
    )


def _dominated(settings: Figures, history: History) -> str:
    lines = [line for line in _joint(history) if "classification_loss" in line]
    diffusion, classification = (
        _by_quarter(lines, name) for name in ("diffusion_loss", "classification_loss")
    )
    if not diffusion or not classification:
        return ""
    best = min(diffusion)
    if diffusion[-1] <= (1 + LOSS_RISE) * best or classification[-1] >= classification[0]:
        return ""
    weight = inside(inside(settings, "training"), "joint").get("classification_weight")
    return (
        f"The diffusion loss of the last quarter of the rounds is {number(diffusion[-1])}, of its "
        f"best quarter {number(best)}, while the classification loss fell. Classification "
        f"dominates: lower training.joint.classification_weight ({number(weight, 2)})."
    )


def _collapsed(summary: Figures) -> str:
    share = measured(summary.get("diversity"))
    if share is None or share >= LEAST_DIVERSITY:
        return ""
    return (
        f"Two samples differ {number(share, 2)} times as much as two real images, and at least "
        f"{LEAST_DIVERSITY} times is expected. The samples have collapsed to few kinds of images."
    )


def _blurred(summary: Figures) -> str:
    psnr = measured(summary.get("psnr"))
    if psnr is None or psnr >= LEAST_PSNR:
        return ""
    return (
        f"Reconstructions have a PSNR of {number(psnr, 1)} dB, below {LEAST_PSNR:.0f} dB. What the "
        "autoencoder loses can be neither classified nor changed: train it longer, or enlarge the "
        "latents."
    )


def _adversarial(summary: Figures) -> str:
    figures = inside(summary, "guidance")
    own, other = (measured(figures.get(name)) for name in ("flipped", "independent_flipped"))
    if own is None or other is None or own < FEWEST_FLIPS or other >= ADVERSARIAL_SHARE * own:
        return ""
    return (
        f"{percent(own)} of the counterfactuals flip the model and {percent(other)} an independent "
        "classifier. They may change what the model alone reacts to, as adversarial examples do."
    )


def _badly_scaled(history: History) -> str:
    deviations = [one for line in history for one in line.get("latent_std") or ()]
    variances = [value**2 for one in deviations if (value := measured(one)) is not None]
    low, high = LATENT_VARIANCES
    far = [one for one in variances if not low <= one <= high]
    if not far:
        return ""
    return (
        f"{len(far)} of {len(variances)} latent channels have a variance outside {low:g} to "
        f"{high:g} before scaling: {', '.join(f'{one:.2g}' for one in far)}. A channel far below 1 "
        "carries nothing, one far above is hardly regularised: change "
        "training.autoencoder.kl_weight."
    )


def _joint(history: History) -> list[Figures]:
    return [line for line in history if line.get("stage") == "joint"]


def _by_quarter(lines: Sequence[Figures], name: str) -> list[float]:
    """Mean of a loss in each quarter of the rounds; none of few rounds or if one lacks it."""
    values = [value for line in lines if (value := measured(line.get(name))) is not None]
    if len(values) < max(FEWEST_ROUNDS, len(lines)):
        return []
    ends = [len(values) * quarter // 4 for quarter in range(5)]
    return [mean(values[start:end]) for start, end in pairwise(ends)]
