"""The range of each number in a reply to an evaluation, as `reply_bounds` has it for the others."""

import torch
from torch import Tensor

from mediffusion_core.evaluation.calibration import TEMPERATURES
from mediffusion_core.evaluation.noised_validation import GAIN_BOUND, ValidationSums
from mediffusion_core.evaluation.subgroups import SUBGROUPS
from mediffusion_core.settings import Settings
from server.messages import Census, RefusedReplyError, StateDict
from server.reply_bounds import DEVIATIONS, ROUNDING, count_of

MAX_LOGIT = 1e6
"""The largest difference of two logits that a loss may come from."""


def refuse_validation(sums: StateDict, census: Census, num_classes: int) -> None:
    """Refuses counts and losses that no validation patients have.

    Raises:
        RefusedReplyError: if counts exceed the census or rise with the threshold, or if losses are
            not those of one set of logits divided by rising temperatures.
    """
    patients = count_of(census, "validation")
    _refuse_curve("counts", sums["counts"], patients)
    # A patient is drawn up to as often as there are patients.
    _refuse_curve("bootstraps", sums["bootstraps"], patients**2)
    losses = sums["temperature_losses"]
    inverse = 1 / TEMPERATURES
    most = patients * num_classes * (torch.tensor(2.0 * num_classes).log() + MAX_LOGIT * inverse)
    if bool((losses < -ROUNDING).any()) or bool((losses > most).any()):
        raise RefusedReplyError("sent temperature losses out of range")
    # Cross-entropy is convex in the inverse temperature: slopes fall as the temperature rises.
    slopes = losses.diff() / inverse.diff()
    if bool((slopes.diff() > ROUNDING * (1 + slopes.abs().max())).any()):
        raise RefusedReplyError("sent temperature losses that are not convex")


def refuse_model_sums(sums: StateDict, census: Census) -> None:
    """Refuses sums that no evaluated patients have.

    Raises:
        RefusedReplyError: if counts exceed the census or rise with the threshold, if the subgroups
            of an attribute exceed the counts of all, or if predictions do not fit their bins.
    """
    images = count_of(census, "images")
    counts, subgroups = sums["counts"], sums["subgroups"]
    _refuse_curve("counts", counts, images)
    # A patient is drawn up to as often as there are patients.
    _refuse_curve("bootstraps", sums["bootstraps"], images**2)
    _refuse_curve("subgroups", subgroups, images)
    for attribute in dict(SUBGROUPS):
        inside = torch.tensor([name == attribute for name, _ in SUBGROUPS])
        if bool((subgroups[inside].sum(dim=0) > counts).any()):
            raise RefusedReplyError(f"sent subgroups by {attribute} that exceed the counts of all")
    number, confidence, right = sums["reliability"].unbind(dim=-1)
    most = images * len(counts)
    if float(number.min()) < 0 or bool((number.sum(dim=-1) > most).any()):
        raise RefusedReplyError(f"sent predictions outside 0 to {most}")
    for name, part in (("confidence", confidence), ("right predictions", right)):
        if bool((part < -ROUNDING).any()) or bool((part > number + ROUNDING * most).any()):
            raise RefusedReplyError(f"sent {name} outside 0 to the number of predictions")
    # Exclusive classes have squares of up to 2 for a prediction.
    if bool((sums["squares"] < 0).any()) or bool((sums["squares"] > 2 * most).any()):
        raise RefusedReplyError("sent squares out of range")


def refuse_noised_validation(sums: StateDict, settings: Settings) -> None:
    """Refuses noised sums that no number of validation units has.

    Raises:
        RefusedReplyError: if a number is larger than `federation.max_images` units and the noise
            of their sums allow.
    """
    noise, most = settings.privacy.validation_noise, settings.federation.max_images
    assert noise is not None
    empty = ValidationSums.empty(len(sums["histogram"]))
    for name, unit in (("histogram", 1.0), ("gains", GAIN_BOUND)):
        deviation = max(
            float(empty.deviations(noise, multi_label).arrays()[name].max())
            for multi_label in (False, True)
        )
        largest = most * unit + DEVIATIONS * deviation
        if float(sums[name].abs().max()) > largest:
            raise RefusedReplyError(f"sent noised {name} above {largest:g}")


def _refuse_curve(name: str, counts: Tensor, most: int) -> None:
    """Checks confusion counts (..., T, 2, 2): not negative, of one total, falling with T."""
    if counts.numel() and (int(counts.min()) < 0 or int(counts.max()) > most):
        raise RefusedReplyError(f"sent {name} outside 0 to {most}")
    totals = counts.sum(dim=-1)  # (..., T, 2)
    if bool((totals != totals[..., :1, :]).any()) or bool((totals.sum(dim=-1) > most).any()):
        raise RefusedReplyError(f"sent {name} whose total changes or exceeds {most}")
    if bool((counts[..., 1].diff(dim=-2) > 0).any()):
        raise RefusedReplyError(f"sent {name} that rise with the threshold")
