"""One site's round of a rival: cross-entropy on labels, and FixMatch on the rest."""

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
from simulations.baselines.settings import RivalSettings


class RivalRound:
    """A site's images with what is drawn from them in one round."""

    def __init__(
        self,
        images: ImageSet,
        settings: RivalSettings,
        augmentation: str,
        multi_label: bool,
        seed: int,
    ) -> None:
        """Takes the site's training images, the kind of their views, and what draws both."""
        self._images = images
        self._settings = settings
        self._kind = augmentation
        self._multi_label = multi_label
        self._generator = torch.Generator().manual_seed(seed)
        self._labelled = Shuffled(images.labelled, self._generator)
        self._unlabelled: Shuffled | None = None
        if settings.consistency is not None and len(images.unlabelled):
            self._unlabelled = Shuffled(images.unlabelled, self._generator)

    @property
    def rows(self) -> int:
        """How many images one batch holds."""
        consistency = self._settings.consistency
        ratio = consistency.ratio if consistency and self._unlabelled else 0
        return self._settings.batch_size * (1 + ratio)

    def loss(self, network: nn.Module) -> Tensor:
        """Of one batch: labelled rows, and with FixMatch unlabelled ones; a scalar."""
        chosen = self._labelled.next(self._settings.batch_size)
        views = augment(self._images.take(chosen), self._kind, self._generator)
        targets = self._images.targets[chosen]
        consistency = self._settings.consistency
        if consistency is None or self._unlabelled is None:
            logits = network(normalised(views)).float()
            return classification_loss(logits, targets, self._multi_label).mean()
        images = self._images.take(self._unlabelled.next(consistency.ratio * len(chosen)))
        pseudo = self._pseudo_labels(network, images, consistency.threshold)
        strong = cutout(augment(images, self._kind, self._generator), self._generator)
        logits = network(normalised(torch.cat([views, strong]))).float()
        labelled, unlabelled = logits.split([len(views), len(strong)])
        supervised = classification_loss(labelled, targets, self._multi_label).mean()
        consistent = classification_loss(unlabelled, pseudo, self._multi_label).mean()
        return supervised + consistency.weight * consistent

    @torch.no_grad()
    def _pseudo_labels(self, network: nn.Module, images: Tensor, threshold: float) -> Tensor:
        """What the network is sure of on weak views of images, (B, classes), NaN elsewhere."""
        weak = turn_and_flip(images, self._generator) if turns_and_flips(self._kind) else images
        probabilities = class_probabilities(network(normalised(weak)).float(), self._multi_label)
        return fixed_labels(threshold, self._multi_label)(probabilities)


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


def rival_optimizer(network: nn.Module, settings: RivalSettings) -> torch.optim.AdamW:
    """AdamW over all of a rival's network."""
    group = {"params": network.parameters(), "base": settings.learning_rate}
    return torch.optim.AdamW([group], weight_decay=settings.weight_decay, fused=True)


def train_locally(
    network: nn.Module,
    optimizer: torch.optim.AdamW,
    images: ImageSet,
    settings: RivalSettings,
    *,
    augmentation: str,
    multi_label: bool,
    precision: str,
    round_number: int,
    seed: int,
) -> LocalReport:
    """Trains in place for one round; a site without labels returns at once.

    `round_number`, from 1, drives steps and learning rate as in the joint stage.
    """
    report = LocalReport()
    known = len(images.labelled)
    if not known:
        return report
    torch.manual_seed(seed)
    this_round = RivalRound(images, settings, augmentation, multi_label, seed)
    steps = local_steps(known, settings.local_epochs, settings.batch_size, round_number)
    behind = steps_behind(optimizer)
    network.train()
    for step in range(steps):
        progress = (round_number - 1 + step / steps) / settings.rounds
        set_rate(optimizer, settings.warmup_steps, behind + step, progress)
        with autocast(precision, torch.device("cpu")):
            loss = this_round.loss(network)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report.add(loss=float(loss.detach()))
    report.images_seen = steps * this_round.rows
    report.labelled_seen = min(known, steps * settings.batch_size)
    return report
