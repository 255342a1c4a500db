"""Canaries in a private round: units whose gradient is one direction of their own.

Canaries go through the round that trains: the same hooks, clipping, Poisson sample, noise and
divisor. Each has the loss L w_i with the i-th weight of a further linear layer, so that its
gradient is the i-th unit vector, longer than the bound. The noised gradient of that layer tells how
much of each canary is in it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Self

import torch
from torch import Tensor, nn

from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import B, Losses, PerSampleGradients
from mediffusion_core.privacy.dp_sgd.private_round import PrivateRound
from mediffusion_core.settings import AutoencoderTraining, JointTraining

LENGTH = 100.0
"""Of a canary's gradient, in bounds C."""


class _WithCanaries(nn.Module):
    """A network, and the layer of the canaries."""

    def __init__(self, module: nn.Module, count: int) -> None:
        super().__init__()
        self.module, self.canaries = module, nn.Linear(count, 1, bias=False)


@dataclass(frozen=True)
class _Rows(Generic[B]):
    """Rows of some units of a site, and then those of some canaries."""

    site: B | None
    """None without a unit of the site."""
    directions: Tensor
    """(n, m): 0 for units of the site, a unit vector for each canary."""

    def __len__(self) -> int:
        return len(self.directions)

    def take(self, units: Tensor) -> Self:
        raise NotImplementedError("only ghost clipping takes rows from a batch")


@dataclass(frozen=True)
class AuditedRound(PrivateRound):
    """A private round with canaries among the units. Its `scores` add up over rounds.

    Attributes:
        took_part: Whether each of m canaries is among the units, (m,) bool.
        scores: How much of each canary the noised gradients had, (m,) float64, in bounds C.
    """

    took_part: Tensor = field(kw_only=True)
    scores: Tensor = field(kw_only=True)

    @property
    def num_units(self) -> int:
        """The site's units, and the canaries that take part."""
        return len(self.index.counts) + int(self.took_part.sum())

    def gradients(self, module: nn.Module, losses: Losses[B]) -> PerSampleGradients[Any]:
        """As `PrivateRound.gradients`, with canaries.

        Raises:
            UserError: for other settings than `grad_sample_mode=hooks` and `clipping=flat`.
                Clipping by layers leaves one layer of many a small part of the bound.
        """
        if self.privacy.grad_sample_mode == "ghost" or self.privacy.clipping == "per_layer":
            raise UserError(
                "an audit needs privacy.grad_sample_mode=hooks and privacy.clipping=flat"
            )
        audited = _WithCanaries(module, len(self.took_part)).to(next(module.parameters()).device)
        length = LENGTH * self.privacy.max_grad_norm

        def together(batch: B | _Rows[B]) -> Tensor:
            if not isinstance(batch, _Rows):  # synthetic units, before the first step
                return losses(batch)
            own: Tensor = length * audited.canaries(batch.directions).squeeze(1)  # (n,)
            if batch.site is None:
                return own
            site = losses(batch.site)
            return own + nn.functional.pad(site, (0, len(own) - len(site)))

        return super().gradients(audited, together)

    def train(
        self,
        gradients: PerSampleGradients[Any],
        draw: Callable[[int, Tensor], Any],
        optimizer: torch.optim.AdamW,
        settings: AutoencoderTraining | JointTraining,
        proximal_weight: float = 0.0,
    ) -> None:
        """As `PrivateRound.train`; adds each noised gradient of the canaries to `scores`."""
        site_units, canaries = len(self.index.counts), self.took_part.nonzero().flatten()
        layer = gradients.module.canaries
        assert isinstance(layer, nn.Linear)

        def drawn(step: int, units: Tensor) -> _Rows[Any]:
            own, others = units[units < site_units], units[units >= site_units] - site_units
            directions = torch.zeros(len(units), len(self.took_part), device=layer.weight.device)
            directions[torch.arange(len(own), len(units)), canaries[others]] = 1.0
            return _Rows(draw(step, own) if len(own) else None, directions)

        def read(*_: object) -> None:
            assert layer.weight.grad is not None
            in_bounds = layer.weight.grad[0] * self.mechanism.expected_units
            self.scores.add_(in_bounds.cpu().double() / self.mechanism.max_grad_norm)

        hook = optimizer.register_step_pre_hook(read)
        try:
            super().train(gradients, drawn, optimizer, settings, proximal_weight)
        finally:
            hook.remove()
