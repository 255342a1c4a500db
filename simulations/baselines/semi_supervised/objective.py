"""The loss of a site's unlabelled images."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from simulations.baselines.task import BaselineTask

Loss = Callable[[Tensor], Tensor]
"""From logits (B, classes) to a scalar."""


class Objective:
    """The loss of one site's unlabelled images, and what the site keeps from round to round."""

    def __init__(self, task: BaselineTask, warm_up: float) -> None:
        """Takes the training's task, and the share of the rounds that train on labels alone."""
        self._task = task
        self._warm_up = warm_up
        self._progress = 0.0
        self._steps = 0

    def begin_round(self, round_number: int) -> None:
        """Takes the number of the round, from 1."""
        self._progress = (round_number - 1) / self._task.settings.rounds

    @property
    def active(self) -> bool:
        """Whether unlabelled images train in this round."""
        return self._progress >= self._warm_up

    def prepare(
        self, network: nn.Module, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Loss]:
        """The views of a batch that the network classifies, and the loss of its logits.

        Args:
            network: The trained network, before the step; in the first one of a round it has the
                global weights.
            images: Unlabelled, (B, C, H, W) in [0, 1].
            generator: Of all draws.
        """
        raise NotImplementedError

    def observe(self, logits: Tensor, targets: Tensor) -> None:
        """Takes the logits (B, C) of a batch with labels (B, C), without their gradient."""

    def end_step(self, network: nn.Module) -> None:
        """Takes the network after a step with unlabelled images."""
        self._steps += 1


def frozen(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients."""
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    copied.zero_grad(set_to_none=True)
    return copied


def ramp(progress: float, length: float) -> float:
    """exp(-5 (1 - p / l)²), and 1 from p = l on (arXiv 1610.02242, section 2.1)."""
    return math.exp(-5 * (1 - progress / length) ** 2) if progress < length else 1.0
