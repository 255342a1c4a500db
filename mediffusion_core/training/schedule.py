"""Learning rate and number of steps of a site's round."""

import math

import torch


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

    Rounding up in each round would raise the weight of a small site, which makes one or two steps a
    round. Every site makes a step in the first round; a small site makes none in some others.

    Args:
        images: the site's.
        epochs: passes in a round.
        batch_size: images a step.
        round_number: from 1.
    """
    each = epochs * images / batch_size
    return math.ceil(each * round_number) - math.ceil(each * (round_number - 1))
