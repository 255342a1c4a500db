"""What both stages share: device, precision, learning rate, seeds, and a round's report."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import nn

from mediffusion_core.errors import UserError

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, current loss)."""


@dataclass
class LocalReport:
    """What one site's round of training amounts to: sums and counts, never single samples."""

    steps: int = 0
    images_seen: int = 0
    labelled_seen: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, **losses: float) -> None:
        """Adds one step's mean losses to the sums."""
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean of each loss over the steps."""
        return {name: total / max(self.steps, 1) for name, total in self.sums.items()}


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed of its own for every purpose, from the run's seed and the purpose's name."""
    text = json.dumps([seed, *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def resolve_device(device: str) -> torch.device:
    """The device that `device=` names; `auto` takes a GPU where there is one.

    Raises:
        UserError: if the name is none of PyTorch's or the device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"setting device={device!r}: not available here; allowed: auto, cpu, cuda, cuda:N"
        ) from None
    return chosen


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where it is asked for, or where `auto` finds hardware that gains by it."""
    wanted = precision == "bf16" or (precision == "auto" and _has_fast_bf16(device))
    if not wanted:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((text for text in file if text.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.split())


class Proximal:
    """Holds a site near the weights it was sent: adds μ/2 ‖θ - θ_global‖² to its loss.

    FedProx, arXiv 1812.06127, equation 2. Its gradient μ (θ - θ_global) is added as such.
    """

    def __init__(self, module: nn.Module, weight: float) -> None:
        """Takes the module as it was sent, and μ; with 0 nothing is kept and nothing added."""
        self._weight = weight
        self._pairs = [(p, p.detach().clone()) for p in module.parameters()] if weight else []

    def add_gradients(self) -> None:
        """Adds the term's gradient to the loss's; what the loss leaves alone has not moved."""
        for parameter, sent in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - sent, alpha=self._weight)


def cosine(base: float, progress: float) -> float:
    """Learning rate at `progress` in [0, 1]: cosine from `base` to a twentieth of it."""
    return base * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def set_rate(
    optimizer: torch.optim.Optimizer, warmup_steps: int, step: float, progress: float
) -> None:
    """Sets each group's rate from its `base`: `cosine`, after a rise over the first steps.

    Args:
        optimizer: Each of its groups has a `base`, the rate that its cosine begins with.
        warmup_steps: Over how many steps the rates rise.
        step: The optimizer's, from 0 over all rounds.
        progress: Of the stage, in [0, 1].
    """
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = cosine(group["base"], progress) * warm


def local_steps(images: int, epochs: float, batch_size: float, round_number: int) -> int:
    """Steps of one round: `epochs` passes over the images, rounded up over all rounds so far.

    In rounds of one or two steps a site's rounding would otherwise be a good part of its weight in
    the mean. Every site makes a step in the first round, and none in some others if it is small.

    Args:
        images: the site's.
        epochs: passes in a round.
        batch_size: images a step.
        round_number: from 1.
    """
    each = epochs * images / batch_size
    return math.ceil(each * round_number) - math.ceil(each * (round_number - 1))
