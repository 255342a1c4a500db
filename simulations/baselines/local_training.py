"""One site's round of a baseline: cross-entropy on labelled images, FixMatch on the others."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mediffusion_core.common.device import autocast
from mediffusion_core.data.augmentation import augment, turn_and_flip, turns_and_flips
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.models import class_probabilities
from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.local_report import LocalReport
from mediffusion_core.training.schedule import local_steps, set_rate
from mediffusion_core.training.semi_supervised.pseudo_labels import fixed_labels
from simulations.baselines.pixel_classifier import normalised
from simulations.baselines.settings import FineTunedSettings, TrainedSettings


@dataclass(frozen=True)
class BaselineTask:
    """How a baseline is trained at every site.

    Attributes:
        settings: Of the baseline.
        augmentation: Kind of augmentation, as `augment` takes it.
        multi_label: Whether the classes are independent.
        precision: As `autocast` takes it.
    """

    settings: TrainedSettings
    augmentation: str
    multi_label: bool
    precision: str

    @property
    def orientation_free(self) -> bool:
        """Whether turned and flipped images are equally likely."""
        return turns_and_flips(self.augmentation)

    def optimizer(self, network: nn.Module) -> torch.optim.AdamW:
        """AdamW over all parameters of a network."""
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        group = {"params": network.parameters(), "base": rate}
        return torch.optim.AdamW([group], weight_decay=decay, fused=True)


class BatchLoss:
    """The loss of random batches of a site's images, in one round."""

    def __init__(self, images: ImageSet, task: BaselineTask, seed: int) -> None:
        """Takes the site's training images and the seed of batches and augmentation."""
        self._images = images
        self._task = task
        self._generator = torch.Generator().manual_seed(seed)
        self._labelled = Shuffled(images.labelled, self._generator)
        self._unlabelled: Shuffled | None = None
        if task.settings.consistency is not None and len(images.unlabelled):
            self._unlabelled = Shuffled(images.unlabelled, self._generator)

    @property
    def batch_images(self) -> int:
        """Images in one batch, labelled and unlabelled."""
        consistency = self._task.settings.consistency
        ratio = consistency.ratio if consistency and self._unlabelled else 0
        return self._task.settings.batch_size * (1 + ratio)

    def loss(self, network: nn.Module) -> Tensor:
        """Mean loss of the next batch, a scalar; with FixMatch also of unlabelled images."""
        kind, multi_label = self._task.augmentation, self._task.multi_label
        chosen = self._labelled.next(self._task.settings.batch_size)
        views = augment(self._images.take(chosen), kind, self._generator)
        targets = self._images.targets[chosen]
        consistency = self._task.settings.consistency
        if consistency is None or self._unlabelled is None:
            logits = network(normalised(views)).float()
            return classification_loss(logits, targets, multi_label).mean()
        images = self._images.take(self._unlabelled.next(consistency.ratio * len(chosen)))
        pseudo = self._pseudo_labels(network, images, consistency.threshold)
        strong = cutout(augment(images, kind, self._generator), self._generator)
        logits = network(normalised(torch.cat([views, strong]))).float()
        labelled, unlabelled = logits.split([len(views), len(strong)])
        supervised = classification_loss(labelled, targets, multi_label).mean()
        consistent = classification_loss(unlabelled, pseudo, multi_label).mean()
        return supervised + consistency.weight * consistent

    @torch.no_grad()
    def _pseudo_labels(self, network: nn.Module, images: Tensor, threshold: float) -> Tensor:
        """Confident predictions on weak views, (B, classes); nan below the threshold."""
        multi_label = self._task.multi_label
        weak = turn_and_flip(images, self._generator) if self._task.orientation_free else images
        # A fine-tuned network drops units and blocks in training, which would shake its labels.
        network.train(not isinstance(self._task.settings, FineTunedSettings))
        probabilities = class_probabilities(network(normalised(weak)).float(), multi_label)
        network.train()
        return fixed_labels(threshold, multi_label)(probabilities)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Greys a square of half the side at a random place of each image (arXiv 1708.04552)."""
    count, _, height, width = images.shape
    side = height // 2

    def hidden(length: int) -> Tensor:
        start = torch.randint(-side // 2, length - side // 2, (count, 1), generator=generator)
        place = torch.arange(length)[None]
        return (place >= start) & (place < start + side)  # (B, length)

    square = hidden(height)[:, :, None] & hidden(width)[:, None, :]  # (B, H, W)
    return torch.where(square[:, None], 0.5, images)


def train_locally(
    network: nn.Module,
    optimizer: torch.optim.AdamW,
    images: ImageSet,
    task: BaselineTask,
    *,
    round_number: int,
    seed: int,
) -> LocalReport:
    """Trains the network in place for one round; does nothing at a site without labels.

    Args:
        network: Maps normalised images (B, C, H, W) to logits (B, classes).
        optimizer: From `BaselineTask.optimizer`, with the moments of the round before.
        images: The site's training images.
        task: Settings of the training.
        round_number: From 1; sets steps and learning rate as in the joint stage.
        seed: Of batches, augmentation and dropout.
    """
    report, settings = LocalReport(), task.settings
    num_labelled = len(images.labelled)
    if not num_labelled:
        return report
    torch.manual_seed(seed)
    batches = BatchLoss(images, task, seed)
    steps = local_steps(num_labelled, settings.local_epochs, settings.batch_size, round_number)
    behind = steps_behind(optimizer)
    network.train()
    for step in range(steps):
        progress = (round_number - 1 + step / steps) / settings.rounds
        set_rate(optimizer, settings.warmup_steps, behind + step, progress)
        with autocast(task.precision, torch.device("cpu")):
            loss = batches.loss(network)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report.add(loss=float(loss.detach()))
    report.images_seen = steps * batches.batch_images
    report.labelled_seen = min(num_labelled, steps * settings.batch_size)
    return report
