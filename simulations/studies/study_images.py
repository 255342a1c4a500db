"""The images that the study changes, and everything that is known of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.counterfactuals.target_by_name import class_index
from mediffusion_core.data.ground_truth import finding_regions, patients_with, patients_without
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.evaluation.counterfactual_metrics import Known
from mediffusion_core.evaluation.counterfactual_panel import Panel, choose_panel
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import Settings


@dataclass(frozen=True)
class StudyImages:
    """Images to change, n of them, and real ones to hold them against, as many or fewer."""

    images: Tensor
    """(n, C, H, W) in [0, 1]."""
    panel: Panel
    groups: tuple[str, ...]
    known: Known
    shown: Tensor
    """The same patients as they were asked to become, (n, C, H, W), with a finding that was to come
    in one of many ways to have it; nan where not known. For the eye: no figure is of additions."""
    real: Tensor
    """Images of other patients, (m, C, H, W)."""
    real_labels: Tensor
    """(m, classes), nan where missing."""

    @property
    def target(self) -> Target:
        """What each image is to become."""
        return self.panel.target


def choose_images(
    model: TrainedModel,
    images: ImageSet,
    settings: Settings,
    hospitals: FederatedDataset,
    per_wish: int,
    name: str,
    *,
    additions: bool = True,
    between: Sequence[str] = (),
) -> StudyImages:
    """Chooses images that the model classifies as they are labelled, by the run's seed.

    An image that the model gets wrong has nothing to flip. Each finding is removed from `per_wish`
    images and added to as many; exclusive classes are changed into each other, two of them.

    Args:
        model: The trained model.
        images: To choose from.
        settings: The run's, with the place of its images.
        hospitals: The images as these settings deal them.
        per_wish: How many images a wish, at most.
        name: Of the choice; draws with the run's seed.
        additions: Whether findings are also added.
        between: The two exclusive classes; without, the most frequent ones.

    Raises:
        UserError: `between` does not name two exclusive classes, fewer than four images fit, or
            none is left to compare with.
    """
    classes, multi_label = model.classes, model.multi_label
    logits = model.logits(model.encode(images.take(torch.arange(len(images)))))
    seen = _as_seen(logits, multi_label)
    right = torch.where(seen == images.targets, images.targets, torch.nan)
    seed = derive_seed(settings.seed, "guidance", name)
    wishes = len(classes) * (1 + additions) if multi_label else 2
    panel = choose_panel(
        right,
        classes,
        multi_label,
        per_wish * wishes,
        seed,
        additions=additions,
        between=_two(between, classes, multi_label),
    )
    others = _others(images, hospitals, panel.positions, seed)
    if len(panel.positions) < 4 or len(others) < 4:
        raise UserError(
            f"only {len(panel.positions)} {name} images are classified as labelled and "
            f"{len(others)} others are left; four of each are needed"
        )
    rows = images.rows[panel.positions.numpy()]
    chosen = others[: len(rows)]
    known, shown = _known(settings, hospitals, rows.tolist(), panel.target, classes)
    return StudyImages(
        images.take(panel.positions),
        panel,
        hospitals.groups(rows),
        known,
        shown,
        images.take(chosen),
        images.targets[chosen],
    )


def _two(
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


def _as_seen(logits: Tensor, multi_label: bool) -> Tensor:
    """What the model would label the images, (n, classes) in {0, 1}."""
    if multi_label:
        return (logits > 0).float()
    return torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).float()


def _others(images: ImageSet, hospitals: FederatedDataset, chosen: Tensor, seed: int) -> Tensor:
    """Positions of images of patients that are not among the chosen, in drawn order."""
    groups = hospitals.groups(images.rows)
    taken = {groups[position] for position in chosen.tolist()}
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([at for at in order.tolist() if groups[at] not in taken], dtype=torch.long)


def _known(
    settings: Settings,
    hospitals: FederatedDataset,
    rows: Sequence[int],
    target: Target,
    classes: tuple[str, ...],
) -> tuple[Known, Tensor]:
    """Masks and truth of what is to go; of what is to come one way to have it, (n, C, H, W)."""
    size, channels = settings.data.image_size, settings.data.channels
    masks = torch.zeros(len(rows), size, size, dtype=torch.bool)
    shown = torch.full((len(rows), channels, size, size), torch.nan)
    added = target.present & target.multi_label
    where = finding_regions(settings, hospitals)
    without = patients_without(settings, hospitals)
    with_it = patients_with(settings, hospitals)
    for at, row in enumerate(rows):
        finding = classes[int(target.index[at])]
        redraw = with_it if bool(added[at]) else without
        pixels = None if redraw is None else redraw(row, finding)
        if pixels is not None:
            shown[at] = torch.from_numpy(pixels.astype(np.float32) / 255)
        mask = None if where is None or bool(added[at]) else where(row, finding)
        if mask is not None:
            masks[at] = torch.from_numpy(mask.copy())
    truth = torch.where(added.reshape(-1, 1, 1, 1), torch.nan, shown)
    return Known(masks, truth), shown
