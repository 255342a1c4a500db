"""The Gaussian mechanism on a Poisson sample of units: a step of DP-SGD (arXiv 1607.00133)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mediffusion_core.privacy.dp_sgd.per_sample_clipping import B, PerSampleGradients
from mediffusion_core.privacy.dp_sgd.randomness import normal, poisson_sample


@dataclass(frozen=True)
class Mechanism:
    """Poisson sampling of units, and noise on the sum of their clipped gradients."""

    sample_rate: float
    """q, the probability that a unit is in a step."""
    noise_multiplier: float
    """σ; the noise's standard deviation is σ C."""
    max_grad_norm: float
    """C, the largest norm of a unit's gradient in the sum."""
    expected_units: float
    """B, the divisor of the sum. A constant: the realised number depends on single units."""
    physical_batch_size: int
    """Units per pass through the network."""


def private_gradients(
    gradients: PerSampleGradients[B],
    draw: Callable[[torch.Tensor], B],
    mechanism: Mechanism,
    num_units: int,
) -> None:
    """Draws units, and sets each parameter's gradient to (Σ clip(g_i) + N(0, σ² C²)) / B.

    The sample may be empty. The gradient is then noise alone, and the step is charged like any
    other.

    Args:
        gradients: Of the network, with the mechanism's bound C.
        draw: Draws the rows of units, given their numbers (n,).
        mechanism: q, σ, C and B.
        num_units: Units of the site.
    """
    units = poisson_sample(num_units, mechanism.sample_rate)
    sums = clipped_sums(gradients, draw, units, mechanism.physical_batch_size)
    deviation = mechanism.noise_multiplier * mechanism.max_grad_norm
    for name, parameter in gradients.parameters.items():
        noised = normal(parameter.shape).mul_(deviation).add_(sums.pop(name).cpu())
        noised.div_(mechanism.expected_units)
        parameter.grad = noised.to(parameter.device, parameter.dtype)


def clipped_sums(
    gradients: PerSampleGradients[B],
    draw: Callable[[torch.Tensor], B],
    units: torch.Tensor,
    physical_batch_size: int,
) -> dict[str, torch.Tensor]:
    """Σ clip(g_i) over units (n,), by parameter, without noise."""
    if not len(units):
        return {name: torch.zeros_like(p) for name, p in gradients.parameters.items()}
    # Equal parts: a last part of few units would cost as much overhead as a full one.
    first, *others = units.tensor_split(-(-len(units) // physical_batch_size))
    sums = gradients.clipped_sum(draw(first))
    for part in others:
        for name, clipped in gradients.clipped_sum(draw(part)).items():
            sums[name] += clipped
    return sums
