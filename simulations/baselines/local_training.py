"""One site's round of a baseline: cross-entropy on labelled images, and a loss of the others."""

import torch
from torch import Tensor, nn

from mediffusion_core.common.device import autocast
from mediffusion_core.data.augmentation import augment
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.local_report import LocalReport
from mediffusion_core.training.schedule import local_steps, set_rate
from simulations.baselines.pixel_classifier import normalised
from simulations.baselines.semi_supervised.objective import Loss, Objective
from simulations.baselines.task import BaselineTask


class BatchLoss:
    """The loss of random batches of a site's images, in one round."""

    def __init__(
        self, images: ImageSet, task: BaselineTask, seed: int, objective: Objective | None
    ) -> None:
        """Takes the site's images, the seed of all draws, and the loss of unlabelled images."""
        self._images = images
        self._task = task
        self._objective = objective
        self._generator = torch.Generator().manual_seed(seed)
        size, consistency = task.settings.batch_size, task.settings.consistency
        ratio = consistency.ratio if consistency and objective and objective.active else 0
        num_labelled, num_unlabelled = len(images.labelled), len(images.unlabelled)
        self._num_labelled = size if num_labelled else 0
        self.num_unlabelled = ratio * size if num_unlabelled else 0
        """Unlabelled images in one batch."""
        self._labelled = Shuffled(images.labelled, self._generator)
        self._unlabelled = Shuffled(images.unlabelled, self._generator)
        self._counted = (num_labelled, size) if num_labelled else (num_unlabelled, ratio * size)

    @property
    def batch_images(self) -> int:
        """Images in one batch, labelled and unlabelled."""
        return self._num_labelled + self.num_unlabelled

    def steps(self, round_number: int) -> int:
        """Steps of a round: passes over the labelled images, or else over the others."""
        images, size = self._counted
        epochs = self._task.settings.local_epochs
        return local_steps(images, epochs, size, round_number) if self.batch_images else 0

    def loss(self, network: nn.Module) -> Tensor:
        """Sum of the mean losses of the next labelled and unlabelled images, a scalar."""
        views: list[Tensor] = []
        losses: list[Loss] = []
        if self._num_labelled:
            chosen = self._labelled.next(self._num_labelled)
            views.append(
                augment(self._images.take(chosen), self._task.augmentation, self._generator)
            )
            targets = self._images.targets[chosen]
            losses.append(lambda logits: self._supervised(logits, targets))
        if self.num_unlabelled:
            assert self._objective is not None
            images = self._images.take(self._unlabelled.next(self.num_unlabelled))
            view, loss = self._objective.prepare(network, images, self._generator)
            views.append(view)
            losses.append(loss)
        logits = network(normalised(torch.cat(views))).float()
        parts = logits.split([len(view) for view in views])
        return torch.stack([loss(part) for loss, part in zip(losses, parts, strict=True)]).sum()

    def _supervised(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self._objective is not None:
            self._objective.observe(logits.detach(), targets)
        return classification_loss(logits, targets, self._task.multi_label).mean()


def train_locally(
    network: nn.Module,
    optimizer: torch.optim.AdamW,
    images: ImageSet,
    task: BaselineTask,
    *,
    round_number: int,
    seed: int,
    objective: Objective | None = None,
) -> LocalReport:
    """Trains the network in place for one round; does nothing where no image has a loss.

    Args:
        network: Maps normalised images (B, C, H, W) to logits (B, classes).
        optimizer: From `BaselineTask.optimizer`, with the moments of the round before.
        images: The site's training images.
        task: Settings of the training.
        round_number: From 1; sets steps and learning rate as in the joint stage.
        seed: Of batches, augmentation and dropout.
        objective: The loss of the site's unlabelled images; None leaves them out.
    """
    report, settings = LocalReport(), task.settings
    if objective is not None:
        objective.begin_round(round_number)
    batches = BatchLoss(images, task, seed, objective)
    torch.manual_seed(seed)
    steps = batches.steps(round_number)
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
        if objective is not None and batches.num_unlabelled:
            objective.end_step(network)
        report.add(loss=float(loss.detach()))
    report.images_seen = steps * batches.batch_images
    report.labelled_seen = min(len(images.labelled), steps * settings.batch_size)
    return report
