"""The context of a site's round: its number, seed and precision, and the rate of each step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mediffusion_core.training.adam_moments import steps_behind
from mediffusion_core.training.local_report import Progress
from mediffusion_core.training.schedule import set_rate


def _silent(step: int, steps: int, loss: float) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class LocalRound:
    """One round of one stage at one site."""

    number: int
    """Of the stage, from 1."""
    rounds: int
    """How many the stage has."""
    seed: int
    """Of all random draws. In a private round it must come from the site's entropy."""
    precision: str = "fp32"
    """One of "auto", "fp32" and "bf16"; a private round takes "fp32"."""
    on_step: Progress = _silent

    def steps(
        self, optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int
    ) -> Iterator[int]:
        """Sets the learning rate of each step of the round.

        Args:
            optimizer: Each of its groups has a `base`, as `set_rate` takes it.
            warmup_steps: Over how many of the optimizer's steps, counted over all rounds, the
                rates rise.
            steps: Of this round.

        Yields:
            The number of the step, from 1.
        """
        behind = steps_behind(optimizer)
        for step in range(steps):
            done = (self.number - 1 + step / steps) / self.rounds
            set_rate(optimizer, warmup_steps, behind + step, done)
            yield step + 1
