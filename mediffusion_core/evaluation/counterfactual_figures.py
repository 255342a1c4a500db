"""Every figure of a set of counterfactuals, each an image's own before it is a mean.

Flip, closeness and realism belong in one table: what leaves an image as it is has the best FID and
the best closeness of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mediffusion_core.artifacts.trained import TrainedModel
from mediffusion_core.diffusion.target import Target
from mediffusion_core.evaluation.counterfactuals import Counterfactuals, off_target, target_change
from mediffusion_core.evaluation.localisation import (
    change_per_pixel,
    energy_inside,
    overlap,
    pointing_game,
    squared_change,
)
from mediffusion_core.evaluation.resampling import Estimate, estimate_mean, estimate_ratio
from mediffusion_core.evaluation.similarity import (
    mean_absolute,
    root_mean_square,
    structural_similarity,
)
from mediffusion_core.evaluation.transition import latent_divergence, transition_score

Columns = dict[str, Tensor]
"""Figures by name, (n,) each, nan where there is none of an image."""


class Opinion(Protocol):
    """Another classifier, which the counterfactuals were not made with."""

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Known:
    """What is known of the n images beside their labels."""

    masks: Tensor
    """Where the finding or the lesion is, booleans (n, H, W); all false where it is not known."""
    truth: Tensor
    """The same patients as they were asked to become, (n, C, H, W); nan where not known."""


def image_figures(
    made: Counterfactuals, target: Target, known: Known, independent: Opinion | None
) -> Columns:
    """What is cheap to measure of each image.

    `flipped`: the model sees the target (of images in which it did not before).
    `independent_flipped`: so does the independent classifier (of images in which neither did).
    `target_change`, `off_target`: as the functions of those names. `l1`, `l2`, `ssim`: closeness to
    the source. `energy_inside`, `iou`, `pointing`: where the change is, against the mask.
    `inside`, `outside`: mean change of a pixel there. `truth_l1`, `truth_l1_source`: distance of
    the counterfactual, and of the source, to the same patient as asked for.
    """
    energy = squared_change(made.sources, made.images)
    inside, outside = change_per_pixel(made.sources, made.images, known.masks)
    return {
        "flipped": torch.where(made.eligible, made.flipped.double(), torch.nan),
        "independent_flipped": _second_opinion(made, target, independent),
        "target_change": target_change(made.before, made.after, target),
        "off_target": off_target(made.before, made.after, target),
        "l1": mean_absolute(made.images, made.sources),
        "l2": root_mean_square(made.images, made.sources),
        "ssim": structural_similarity(made.images, made.sources),
        "energy_inside": energy_inside(energy, known.masks),
        "iou": overlap(energy, known.masks),
        "pointing": pointing_game(energy, known.masks),
        "inside": inside,
        "outside": outside,
        "truth_l1": mean_absolute(made.images, known.truth),
        "truth_l1_source": mean_absolute(made.sources, known.truth),
    }


def effect_figures(
    model: TrainedModel, made: Counterfactuals, target: Target, real: Tensor, labels: Tensor
) -> Columns:
    """How little of the image the effect needs: `cout` and `minimality`, after `transition`.

    Minimality holds the change against the ways to other patients' images, by the features that
    the head reads. By latents it would be log(1 + e) for everyone: two patients differ at every
    place, so that no counterfactual comes near another one, or near the target's.

    Args:
        model: Whose counterfactuals they are.
        made: The counterfactuals.
        target: What was asked for; of several findings, real images are compared by the first.
        real: Real images, (m, C, H, W).
        labels: Of the real images, (m, classes), nan where missing.
    """

    def balance(images: Tensor) -> Tensor:
        probabilities = model.classify(images)
        if target.multi_label:
            return 2 * target.confidence(probabilities) - 1
        was = made.before.argmax(dim=1, keepdim=True)
        return target.confidence(probabilities) - probabilities.gather(1, was).squeeze(1)

    return {
        "cout": transition_score(made.sources, made.images, balance),
        "minimality": _minimality(model, made, target, real, labels),
    }


def _minimality(
    model: TrainedModel, made: Counterfactuals, target: Target, real: Tensor, labels: Tensor
) -> Tensor:
    sources, changed, others = (
        model.features(images) for images in (made.sources, made.images, real)
    )
    index = target.index.reshape(len(sources), -1)[:, 0]
    present = target.present.reshape(len(sources), -1)[:, 0].to(labels.dtype)
    found = torch.full((len(sources),), torch.nan, dtype=torch.float64)
    for row in range(len(sources)):
        as_asked = labels[:, index[row]] == present[row]
        as_it_was = labels[:, index[row]] == 1 - present[row]
        if not target.multi_label:
            as_it_was = labels[:, made.before[row].argmax()] == 1
        if bool(as_asked.any()) and bool(as_it_was.any()):
            one = slice(row, row + 1)
            found[one] = latent_divergence(
                sources[one], changed[one], others[as_it_was], others[as_asked]
            )
    return found


def summarise(
    columns: Mapping[str, Tensor], groups: Sequence[str], num_bootstraps: int, seed: int
) -> dict[str, Estimate]:
    """Mean of each figure with its interval over patients, and two ratios of means.

    `inside_outside`: the change of a pixel inside the mask and outside. `extent`: the change, and
    that which the same patient as asked for would have been; 1 is as much as it takes.
    """
    figures = {
        name: estimate_mean(values, groups, num_bootstraps, seed)
        for name, values in columns.items()
    }
    inside, outside = columns["inside"], columns["outside"]
    figures["inside_outside"] = estimate_ratio(inside, outside, groups, num_bootstraps, seed)
    change, true_change = columns["l1"], columns["truth_l1_source"]
    figures["extent"] = estimate_ratio(change, true_change, groups, num_bootstraps, seed)
    return figures


def _second_opinion(made: Counterfactuals, target: Target, independent: Opinion | None) -> Tensor:
    if independent is None:
        return torch.full((len(made.images),), torch.nan, dtype=torch.float64)
    before = target.reached(independent.logits(made.sources))
    after = target.reached(independent.logits(made.images)).double()
    return torch.where(made.eligible & ~before, after, torch.nan)
