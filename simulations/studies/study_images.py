"""The images that a study of counterfactuals changes, with targets and ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.counterfactuals.target_by_name import class_index
from mediffusion_core.data.ground_truth import finding_regions, patients_with, patients_without
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.evaluation.counterfactual_metrics import GroundTruth
from mediffusion_core.evaluation.counterfactual_panel import Panel, choose_panel
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.studies.trained_run import TrainedRun

FEWEST = 4
"""Images to change, and images of other patients, that a study needs at least."""


@dataclass(frozen=True)
class StudyImages:
    """n images to change, and up to n real images of other patients."""

    images: Tensor
    """(n, C, H, W) in [0, 1]."""
    panel: Panel
    rows: NDArray[np.int64]
    """The images' rows in the store, (n,)."""
    groups: tuple[str, ...]
    """Patient or lesion of each image."""
    known: GroundTruth
    labels: Tensor
    """Labels of all images from which these were chosen, (N, classes), nan where missing."""
    real: Tensor
    """Images of other patients, (m, C, H, W)."""
    real_labels: Tensor
    """(m, classes), nan where missing."""

    @property
    def target(self) -> Target:
        """The target of each image."""
        return self.panel.target

    @property
    def truth_shown(self) -> Tensor:
        """The same patients with the target state, (n, C, H, W); nan if unknown."""
        return torch.where(self.known.truth.isnan(), self.known.added, self.known.truth)


@dataclass(frozen=True)
class Choice:
    """Which images to choose.

    Attributes:
        name: Of the choice; part of its seed.
        per_target: Most images for each target.
        additions: Whether findings are also added.
        between: Two exclusive classes; the two most frequent if empty.
    """

    name: str
    per_target: int
    additions: bool = True
    between: Sequence[str] = ()


def choose_images(run: TrainedRun, images: ImageSet, choice: Choice) -> StudyImages:
    """Chooses correctly classified images by the run's seed.

    A wrongly classified image has no prediction to flip. With findings, each is removed from up to
    `per_target` images and added to as many. Exclusive classes are changed into each other.

    Args:
        run: The trained run.
        images: The images to choose from.
        choice: The number of images and their targets.

    Raises:
        UserError: if `between` does not name two exclusive classes, fewer than four images fit, or
            fewer than four images of other patients are left.
    """
    model = run.model
    classes, multi_label = model.classes, model.multi_label
    seed = derive_seed(run.settings.seed, "guidance", choice.name)
    num_targets = len(classes) * (1 + choice.additions) if multi_label else 2
    panel = choose_panel(
        _correct_labels(model, images),
        classes,
        multi_label,
        choice.per_target * num_targets,
        seed,
        additions=choice.additions,
        between=_exclusive_pair(choice.between, classes, multi_label),
    )
    others = _other_patients(images, run.dataset, panel.positions, seed)
    if len(panel.positions) < FEWEST or len(others) < FEWEST:
        raise UserError(
            f"only {len(panel.positions)} {choice.name} images are classified as labelled and "
            f"{len(others)} others are left; four of each are needed"
        )
    rows = images.rows[panel.positions.numpy()]
    real = others[: len(rows)]
    return StudyImages(
        images.take(panel.positions),
        panel,
        rows,
        run.dataset.groups(rows),
        _ground_truth(run, rows.tolist(), panel.target),
        images.targets,
        images.take(real),
        images.targets[real],
    )


def class_names(text: str) -> tuple[str, ...]:
    """Names of classes, separated by commas."""
    return tuple(text.split(",")) if text else ()


def _exclusive_pair(
    between: Sequence[str], classes: tuple[str, ...], multi_label: bool
) -> tuple[int, int] | None:
    if not between:
        return None
    if multi_label or len(set(between)) != 2 or len(between) != 2:
        raise UserError(
            f"--between {','.join(between)}: allowed are two classes that exclude each other"
        )
    first, second = (class_index(name, classes) for name in between)
    return first, second


def _correct_labels(model: TrainedModel, images: ImageSet) -> Tensor:
    """Labels (N, classes), nan where the model predicts another one."""
    logits = model.logits(model.encode(images.take(torch.arange(len(images)))))
    if model.multi_label:
        predicted = (logits > 0).float()
    else:
        predicted = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return torch.where(predicted == images.targets, images.targets, torch.nan)


def _other_patients(
    images: ImageSet, dataset: FederatedDataset, chosen: Tensor, seed: int
) -> Tensor:
    """Positions of images of patients without a chosen image, in random order."""
    groups = dataset.groups(images.rows)
    taken = {groups[position] for position in chosen.tolist()}
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([at for at in order.tolist() if groups[at] not in taken], dtype=torch.long)


def _ground_truth(run: TrainedRun, rows: Sequence[int], target: Target) -> GroundTruth:
    """Masks and true images of removed findings, and images of added ones."""
    data = run.settings.data
    masks = torch.zeros(len(rows), data.image_size, data.image_size, dtype=torch.bool)
    shape = (len(rows), data.channels, data.image_size, data.image_size)
    truth, with_added = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    added = target.present & target.multi_label
    regions = finding_regions(run.settings, run.dataset)
    without = patients_without(run.settings, run.dataset)
    with_finding = patients_with(run.settings, run.dataset)
    for at, row in enumerate(rows):
        finding = run.model.classes[int(target.index[at])]
        images, redraw = (with_added, with_finding) if bool(added[at]) else (truth, without)
        pixels = None if redraw is None else redraw(row, finding)
        if pixels is not None:
            images[at] = torch.from_numpy(pixels.astype(np.float32) / 255)
        mask = None if regions is None or bool(added[at]) else regions(row, finding)
        if mask is not None:
            masks[at] = torch.from_numpy(mask.copy())
    return GroundTruth(masks, truth, with_added)
