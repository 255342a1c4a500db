"""The Gaussian mechanism on a Poisson sample of units: a step of DP-SGD (arXiv 1607.00133)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mediffusion_core.privacy.dp_sgd.per_sample_clipping import B, UnitGradients
from mediffusion_core.privacy.dp_sgd.randomness import normal, poisson_sample


@dataclass(frozen=True)
class Mechanism:
    """How units are drawn, and how much noise their sum gets."""

    sample_rate: float
    """q, with which a unit is in a step."""
    noise_multiplier: float
    """σ; the noise's standard deviation is σ C."""
    max_grad_norm: float
    """C, the bound on a unit's part of the sum."""
    expected_units: float
    """By which the sum is divided; a constant, since the realised number would tell of a unit."""
    physical_batch_size: int
    """Units that go through the network at once."""


def private_gradients(
    gradients: UnitGradients[B],
    draw: Callable[[torch.Tensor], B],
    mechanism: Mechanism,
    num_units: int,
) -> None:
    """Draws units, and leaves (Σ clip(g_i) + N(0, σ² C²)) / B as gradient of each parameter.

    The sample may be empty: then the gradient is noise alone, and the step counts as any other.

    Args:
        gradients: Of the network; its bound is the mechanism's.
        draw: Makes the rows of units, given by their numbers (n,).
        mechanism: q, σ, C and B.
        num_units: How many the site has.
    """
    sums = {name: torch.zeros_like(p) for name, p in gradients.parameters.items()}
    for part in _parts(poisson_sample(num_units, mechanism.sample_rate), mechanism):
        for name, clipped in gradients.clipped_sum(draw(part)).items():
            sums[name] += clipped
    deviation = mechanism.noise_multiplier * mechanism.max_grad_norm
    for name, parameter in gradients.parameters.items():
        noised = normal(parameter.shape).mul_(deviation).add_(sums[name].cpu())
        noised.div_(mechanism.expected_units)
        parameter.grad = noised.to(parameter.device, parameter.dtype)


def _parts(units: torch.Tensor, mechanism: Mechanism) -> Iterator[torch.Tensor]:
    return iter(units.split(mechanism.physical_batch_size) if len(units) else ())
