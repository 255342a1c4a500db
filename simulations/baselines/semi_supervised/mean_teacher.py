"""Mean teacher: another view has the probabilities of averaged weights (arXiv 1703.01780)."""

import torch
from torch import Tensor, nn

from mediffusion_core.data.augmentation import augment
from mediffusion_core.models import class_probabilities
from simulations.baselines.pixel_classifier import normalised
from simulations.baselines.semi_supervised.objective import Loss, Objective, frozen, ramp
from simulations.baselines.semi_supervised.settings import TeacherSettings
from simulations.baselines.task import BaselineTask


class MeanTeacher(Objective):
    """Squared distance to a teacher's probabilities of another view, summed over classes.

    Each site keeps its own teacher through all rounds, as FedIRM's and RSCFed's authors do.
    """

    def __init__(self, task: BaselineTask, settings: TeacherSettings) -> None:
        """Takes the training's task; the first batch sets the teacher."""
        super().__init__(task, settings.warm_up)
        self._settings = settings
        self._teacher: nn.Module | None = None

    @property
    def weight(self) -> float:
        """Weight of the loss in this round."""
        return self._settings.weight * ramp(self._progress, self._settings.ramp_up)

    def prepare(
        self, network: nn.Module, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Loss]:
        """Two random views; the teacher classifies the first one."""
        kind, multi_label = self._task.augmentation, self._task.multi_label
        first, second = (augment(images, kind, generator) for _ in range(2))
        if self._teacher is None:
            self._teacher = frozen(network)
        with torch.no_grad():
            logits = self._teacher(normalised(first)).float()
        wanted = sharpened(
            class_probabilities(logits, multi_label), self._settings.sharpening, multi_label
        )

        def loss(logits: Tensor) -> Tensor:
            error = class_probabilities(logits, multi_label) - wanted
            return self.weight * error.square().sum(dim=1).mean()

        return second, loss

    @torch.no_grad()
    def end_step(self, network: nn.Module) -> None:
        """Moves the teacher; its decay rises with the steps: min(1 - 1 / (n + 1), decay)."""
        assert self._teacher is not None
        decay = min(1 - 1 / (self._steps + 1), self._settings.teacher_decay)
        super().end_step(network)
        current = network.state_dict()
        for name, value in self._teacher.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - decay)
            else:  # counts of batches
                value.copy_(current[name])


def sharpened(probabilities: Tensor, temperature: float, multi_label: bool) -> Tensor:
    """p^(1/T) over its sum, of exclusive classes or of a finding's presence and absence, (B, C)."""
    present = probabilities ** (1 / temperature)
    if multi_label:
        return present / (present + (1 - probabilities) ** (1 / temperature))
    return present / present.sum(dim=1, keepdim=True)
