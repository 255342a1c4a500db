"""The steps of one private round, which both stages share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mediffusion_core.privacy.dp_sgd.noise import Mechanism, clipped_sums, private_gradients
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import B, Losses, PerSampleGradients
from mediffusion_core.privacy.unit_streams import UnitStreams
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import AutoencoderTraining, JointTraining
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.fedprox import Proximal
from mediffusion_core.training.local_round import LocalRound


@dataclass(frozen=True)
class PrivateRound:
    """One site's round of private training.

    Attributes:
        index: The unit of each training image.
        mechanism: Sampling rate, noise and bound of each step.
        privacy: The run's settings of clipping.
        steps: Steps of this round.
        current: Number of the round, and its seed, which must come from the site's entropy. Its
            `on_step` is called with NaN as the loss: the loss of a private step is not reported.
    """

    index: UnitIndex
    mechanism: Mechanism
    privacy: PrivacySettings
    steps: int
    current: LocalRound

    @property
    def num_units(self) -> int:
        """Units that each step draws from."""
        return len(self.index.counts)

    def gradients(self, module: nn.Module, losses: Losses[B]) -> PerSampleGradients[B]:
        """Clipped per-sample gradients of a network in training mode, as the settings say."""
        privacy = self.privacy
        return PerSampleGradients(module, losses, privacy.clipping, privacy.max_grad_norm)

    def streams(self) -> UnitStreams:
        """The units' streams under a new secret of the operating system."""
        return UnitStreams(self.index.names)

    def sums(
        self, gradients: PerSampleGradients[B], draw: Callable[[int, Tensor], B]
    ) -> dict[str, Tensor]:
        """Σ clip(g_i) over all units, by parameter, without noise; arguments as of `train`."""
        units = torch.arange(self.num_units)
        return clipped_sums(gradients, partial(draw, 1), units, self.mechanism.physical_batch_size)

    def train(
        self,
        gradients: PerSampleGradients[B],
        draw: Callable[[int, Tensor], B],
        optimizer: torch.optim.AdamW,
        settings: AutoencoderTraining | JointTraining,
        proximal_weight: float = 0.0,
    ) -> None:
        """Makes the steps of the round: DP-SGD (arXiv 1607.00133, algorithm 1) with AdamW.

        Args:
            gradients: Of the network that is trained in place.
            draw: Draws the rows of units, given the step and their numbers (n,).
            optimizer: Of the network. Its moments are of noised gradients alone.
            settings: Warm-up of the learning rate.
            proximal_weight: μ of FedProx, arXiv 1812.06127; 0 leaves the gradients as they are.
        """
        proximal = Proximal(gradients.module, proximal_weight)
        for step in self.current.steps(optimizer, settings.warmup_steps, self.steps):
            private_gradients(gradients, partial(draw, step), self.mechanism, self.num_units)
            proximal.add_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.current.on_step(step, self.steps, float("nan"))
