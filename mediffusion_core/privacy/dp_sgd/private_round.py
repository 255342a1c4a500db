"""The steps of one private round, which both stages share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mediffusion_core.privacy.dp_sgd.noise import Mechanism, private_gradients
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import B, Losses, PerSampleGradients
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import AutoencoderTraining, JointTraining
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.local_report import Progress
from mediffusion_core.training.schedule import set_rate


@dataclass(frozen=True)
class PrivateRound:
    """One site's round of private training.

    Attributes:
        index: The unit of each training image.
        mechanism: Sampling rate, noise and bound of each step.
        privacy: The run's settings of clipping.
        steps: Steps of this round.
        round_number: Round of the stage, from 1. With `rounds` it sets the learning rate.
        rounds: Rounds of the stage.
        on_step: Called after each step, with NaN as the loss: the loss of a private step is not
            reported.
    """

    index: UnitIndex
    mechanism: Mechanism
    privacy: PrivacySettings
    steps: int
    round_number: int
    rounds: int
    on_step: Progress

    def gradients(self, module: nn.Module, losses: Losses[B]) -> PerSampleGradients[B]:
        """Clipped per-sample gradients of a network in training mode, as the settings say."""
        privacy = self.privacy
        return PerSampleGradients(
            module, losses, privacy.grad_sample_mode, privacy.clipping, privacy.max_grad_norm
        )

    def train(
        self,
        gradients: PerSampleGradients[B],
        draw: Callable[[Tensor], B],
        optimizer: torch.optim.AdamW,
        settings: AutoencoderTraining | JointTraining,
        before_step: Callable[[float], None] = lambda progress: None,
    ) -> None:
        """Makes the steps of the round: DP-SGD (arXiv 1607.00133, algorithm 1) with AdamW.

        Args:
            gradients: Of the network that is trained in place.
            draw: Draws the rows of units, given their numbers (n,).
            optimizer: Of the network. Its moments are of noised gradients alone.
            settings: Warm-up of the learning rate, and weight of the proximal term.
            before_step: Called before each step with the progress of the stage, in [0, 1].
        """
        proximal = Proximal(gradients.module, settings.proximal_weight)
        steps_before = steps_behind(optimizer)
        for step in range(self.steps):
            progress = (self.round_number - 1 + step / self.steps) / self.rounds
            set_rate(optimizer, settings.warmup_steps, steps_before + step, progress)
            before_step(progress)
            private_gradients(gradients, draw, self.mechanism, len(self.index.counts))
            proximal.add_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.on_step(step + 1, self.steps, float("nan"))
