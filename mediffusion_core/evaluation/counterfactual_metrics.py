"""Every figure of a set of counterfactuals: per image first, then means with intervals.

Report flip rate, closeness and realism together: a method that changes nothing has the best FID and
the best closeness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.bootstrap import Estimate, estimate_mean, estimate_ratio
from mediffusion_core.evaluation.counterfactual_panel import (
    Counterfactuals,
    off_target,
    target_change,
)
from mediffusion_core.evaluation.cout import latent_divergence, transition_score
from mediffusion_core.evaluation.localisation import (
    change_per_pixel,
    energy_inside,
    overlap,
    pointing_game,
    squared_change,
)
from mediffusion_core.evaluation.similarity import (
    mean_absolute,
    root_mean_square,
    structural_similarity,
)
from mediffusion_core.inference.joint_model import TrainedModel

Columns = dict[str, Tensor]
"""Figures by name, (n,) each, nan where an image has none."""


class IndependentClassifier(Protocol):
    """An independent classifier, which was not used to make the counterfactuals."""

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in [0, 1]."""


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth of the n images beyond their labels."""

    masks: Tensor
    """Pixels of the finding or the lesion, booleans (n, H, W); all false where unknown."""
    truth: Tensor
    """The same patients without the finding to be removed, (n, C, H, W); nan where unknown."""
    added: Tensor
    """The same patients with the finding to be added, (n, C, H, W); nan where unknown.

    It is one of many ways to have the finding.
    """


def image_figures(
    made: Counterfactuals,
    target: Target,
    known: GroundTruth,
    independent: IndependentClassifier | None,
) -> Columns:
    """The figures of each image that are cheap to compute.

    `flipped`: the model classifies the counterfactual as the target; nan where it already did so
    with the source. `independent_flipped`: the same for the independent classifier; nan where
    either classifier already did so with the source. `target_change`, `off_target`: see the
    functions. `l1`, `l2`, `ssim`: closeness to the source. `energy_inside`, `iou`, `pointing`:
    place of the change against the mask. `inside`, `outside`: mean change of a pixel there.
    `truth_l1`, `truth_ssim` and the same with `_source`: distance of the counterfactual, and of the
    source, to the true counterfactual; `added_l1` and so on: to one of those with an added finding.

    Args:
        made: The counterfactuals.
        target: The targets.
        known: Ground truth of the same images.
        independent: The independent classifier; without it `independent_flipped` is nan.
    """
    energy = squared_change(made.sources, made.images)
    inside, outside = change_per_pixel(made.sources, made.images, known.masks)
    return {
        "flipped": torch.where(made.eligible, made.flipped.double(), torch.nan),
        "independent_flipped": _independent_flips(made, target, independent),
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
        **_distances("truth", made, known.truth),
        **_distances("added", made, known.added),
    }


def _distances(name: str, made: Counterfactuals, truth: Tensor) -> Columns:
    """L1 and SSIM of counterfactuals and sources to images (n, C, H, W), nan where these are."""
    known = truth.flatten(1).isfinite().all(dim=1)
    columns = {}
    for ending, images in (("", made.images), ("_source", made.sources)):
        similarity = torch.full((len(images),), torch.nan)
        if bool(known.any()):
            similarity[known] = structural_similarity(images[known], truth[known])
        columns[f"{name}_l1{ending}"] = mean_absolute(images, truth)
        columns[f"{name}_ssim{ending}"] = similarity
    return columns


def effect_figures(
    model: TrainedModel, made: Counterfactuals, target: Target, real: Tensor, labels: Tensor
) -> Columns:
    """`cout` and `minimality`: how small the change is that has the effect.

    Minimality compares the size of the change with distances to other patients' images, in the
    features that the head reads. In latents it would be log(1 + e) for every image: two patients
    differ at every position, far more than a counterfactual and its source.

    Args:
        model: The model that made the counterfactuals.
        made: The counterfactuals.
        target: The targets; of several findings, minimality considers the first.
        real: Real images, (m, C, H, W).
        labels: Labels of the real images, (m, classes), nan where missing.
    """
    source_class = made.before.argmax(dim=1, keepdim=True)  # (n, 1)

    def margin(images: Tensor) -> Tensor:
        probabilities = model.classify(images)
        if target.multi_label:
            return 2 * target.confidence(probabilities) - 1
        return target.confidence(probabilities) - probabilities.gather(1, source_class).squeeze(1)

    return {
        "cout": transition_score(made.sources, made.images, margin),
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
        like_target = labels[:, index[row]] == present[row]
        like_source = labels[:, index[row]] == 1 - present[row]
        if not target.multi_label:
            like_source = labels[:, made.before[row].argmax()] == 1
        if bool(like_target.any()) and bool(like_source.any()):
            one = slice(row, row + 1)
            found[one] = latent_divergence(
                sources[one], changed[one], others[like_source], others[like_target]
            )
    return found


def summarise(
    columns: Mapping[str, Tensor], groups: Sequence[str], num_bootstraps: int, seed: int
) -> dict[str, Estimate]:
    """Mean of each figure with its interval over patients, and two ratios of means.

    `inside_outside`: change of a pixel inside the mask, divided by that of one outside. `extent`:
    change of the image, divided by that of the true counterfactual; 1 is the right amount.

    Args:
        columns: From `image_figures` and `effect_figures`.
        groups: Patient or lesion of each of the n images.
        num_bootstraps: B.
        seed: Of the draws.
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


def _independent_flips(
    made: Counterfactuals, target: Target, independent: IndependentClassifier | None
) -> Tensor:
    if independent is None:
        return torch.full((len(made.images),), torch.nan, dtype=torch.float64)
    before = target.reached(independent.logits(made.sources))
    after = target.reached(independent.logits(made.images)).double()
    return torch.where(made.eligible & ~before, after, torch.nan)
