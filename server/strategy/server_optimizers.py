"""The server's step from a component's weights to its next, given the mean of what the sites sent.

With θ the weights, Δ = mean - θ, and every power and root taken value by value:

    fedavg    θ + η Δ                                            (arXiv 1602.05629 with η = 1)
    fedavgm   m ← β₁ m + Δ                   θ + η m              (arXiv 1909.06335, section 4.3)
    fedadam   m ← β₁ m + (1 - β₁) Δ          θ + η m / (√v + τ)   (arXiv 2003.00295, algorithm 2)
              v ← β₂ v + (1 - β₂) Δ²
    fedyogi   as fedadam, with v ← v - (1 - β₂) Δ² sign(v - Δ²)

m starts at 0 and v at τ².
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, UNET
from mediffusion_core.settings import ServerOptimizer, ServerSettings

StateDict = Mapping[str, Tensor]

MEAN = ".mean"
SQUARE = ".square"


def by_component(server: ServerSettings) -> dict[str, ServerOptimizer]:
    """The settings of each component."""
    return {AUTOENCODER: server.autoencoder, UNET: server.unet, HEAD: server.head}


def server_step(
    settings: ServerOptimizer, weights: StateDict, mean: StateDict, memory: StateDict
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One step of one component.

    Args:
        settings: Method and rates.
        weights: What the sites were sent.
        mean: The mean of what they sent back, with the same keys and shapes.
        memory: What this function returned for the component in the round before; empty at first.

    Returns:
        The next weights, and the memory of m and v: `NAME.mean` and `NAME.square`, as far as the
        method has them, in float32.
    """
    if settings.method == "fedavg" and settings.learning_rate == 1.0:
        return dict(mean), {}
    changes = {name: mean[name].double() - before.double() for name, before in weights.items()}
    return step_by(settings, weights, changes, memory)


def step_by(
    settings: ServerOptimizer, weights: StateDict, changes: StateDict, memory: StateDict
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`server_step` with the changes Δ (float64) in the place of the mean."""
    stepped, kept = {}, {}
    for name, before in weights.items():
        change = step = changes[name]
        if settings.method != "fedavg":
            fresh = 1.0 if settings.method == "fedavgm" else 1.0 - settings.beta1
            step = settings.beta1 * _remembered(memory, name + MEAN, change, 0.0) + fresh * change
            kept[name + MEAN] = step.float()
        if settings.method in ("fedadam", "fedyogi"):
            square = _remembered(memory, name + SQUARE, change, settings.tau**2)
            square = _next_square(settings, square, change.square())
            kept[name + SQUARE] = square.float()
            step = step / (square.sqrt() + settings.tau)
        stepped[name] = (before.double() + settings.learning_rate * step).to(before.dtype)
    return stepped, kept


def _next_square(settings: ServerOptimizer, square: Tensor, change: Tensor) -> Tensor:
    if settings.method == "fedadam":
        return settings.beta2 * square + (1 - settings.beta2) * change
    return square - (1 - settings.beta2) * change * torch.sign(square - change)


def _remembered(memory: StateDict, name: str, like: Tensor, start: float) -> Tensor:
    if name in memory:
        return memory[name].double()
    return torch.full_like(like, start)
