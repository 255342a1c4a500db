"""FixMatch: confident predictions on weak views label strong views (arXiv 2001.07685)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mediffusion_core.data.augmentation import augment, turn_and_flip
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.models import class_probabilities
from mediffusion_core.training.semi_supervised.pseudo_labels import (
    MOMENTUM,
    PseudoLabels,
    SelfAdaptive,
    fixed_labels,
)
from simulations.baselines.pixel_classifier import normalised
from simulations.baselines.semi_supervised.objective import Loss, Objective
from simulations.baselines.semi_supervised.settings import ConsistencySettings
from simulations.baselines.settings import FineTunedSettings
from simulations.baselines.task import BaselineTask


class FixMatch(Objective):
    """Cross-entropy of strong views with the labels of weak ones."""

    def __init__(self, task: BaselineTask, settings: ConsistencySettings, shares: Tensor) -> None:
        """Takes the training's task and the share of each class among all labels, (C,)."""
        super().__init__(task, warm_up=0.0)
        self._settings = settings
        self._labels: PseudoLabels = fixed_labels(settings.threshold, task.multi_label)
        if settings.thresholds == "adaptive":
            # Before the first batch as of even odds (arXiv 2205.07246).
            self._labels = SelfAdaptive(torch.full((1, len(shares)), 1 / len(shares)))
        self._aligned: Callable[[Tensor], Tensor] | None = None
        if settings.alignment:
            self._aligned = Alignment(shares)

    def prepare(
        self, network: nn.Module, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Loss]:
        """Strong views; unsure ones have the loss 0."""
        pseudo = self._pseudo_labels(network, images, generator)
        strong = cutout(augment(images, self._task.augmentation, generator), generator)

        def loss(logits: Tensor) -> Tensor:
            each = classification_loss(logits, pseudo, self._task.multi_label)
            return self._settings.weight * each.mean()

        return strong, loss

    @torch.no_grad()
    def _pseudo_labels(
        self, network: nn.Module, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Confident predictions on weak views, (B, classes); nan below the threshold."""
        weak = turn_and_flip(images, generator) if self._task.orientation_free else images
        # A fine-tuned network drops units and blocks in training, which would shake its labels.
        network.train(not isinstance(self._task.settings, FineTunedSettings))
        logits = network(normalised(weak)).float()
        network.train()
        probabilities = class_probabilities(logits, self._task.multi_label)
        return self._labels(self._aligned(probabilities) if self._aligned else probabilities)


class Alignment:
    """Scales probabilities by p(y) / p̃(y) to the distribution of the labels.

    p̃ is a moving mean of the probabilities (arXiv 1911.09785), which begins with p.
    """

    def __init__(self, shares: Tensor) -> None:
        """Takes p(y), the share of each class among the labels, (C,)."""
        self._wanted = shares
        self._mean = shares

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Moves the mean by a batch (B, C), and aligns it."""
        self._mean = self._mean.lerp(probabilities.mean(dim=0), 1 - MOMENTUM)
        aligned = probabilities * self._wanted / self._mean
        return aligned / aligned.sum(dim=1, keepdim=True)


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
