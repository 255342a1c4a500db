"""Averaging the sites' weights, each component by what it was trained on."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mediffusion_core.messaging.protocol import WEIGHTED_BY
from mediffusion_core.settings import Weighting

StateDict = Mapping[str, Tensor]


def weighted_mean(states: Sequence[StateDict], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ w_k θ_k / Σ w_k (FedAvg, arXiv 1602.05629, algorithm 1), summed in float64.

    Args:
        states: One state dict a site, all with the same keys and shapes.
        weights: One weight a site, not negative, not all zero.

    Raises:
        ValueError: if no weight is positive, or the states do not match.
    """
    total = float(sum(weights))
    if not math.isfinite(total) or total <= 0 or min(weights) < 0:
        raise ValueError(f"weights {list(weights)} do not make a mean")
    if any(state.keys() != states[0].keys() for state in states):
        raise ValueError("the sites' components have different parameters")
    mean = {}
    for name, first in states[0].items():
        accumulated = torch.zeros(first.shape, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            if weight:
                accumulated += state[name].double() * (weight / total)
        mean[name] = accumulated.to(first.dtype)
    return mean


def site_weight(metrics: Mapping[str, float], by: str, weighting: Weighting) -> float:
    """Weight of a site in a mean, from the images that it trained on in its steps of a round.

    `by` names the images that count; `steps` need be there only where they are weighed.

    With `rounds` its whole change is weighted by its images n, as in FedAvg. Steps are as many as
    images allow, so that what moves the mean is n². With `steps` the change of one step is: n over
    the steps τ, which is FedNova (arXiv 2007.07481, equation 10) with Σ n / Σ (n/τ) effective
    steps, and still a mean of states, so that moments are averaged alike.
    """
    return metrics[by] / max(metrics["steps"], 1.0) if weighting == "steps" else metrics[by]


def aggregate(
    component: str,
    states: Sequence[StateDict],
    metrics: Sequence[Mapping[str, float]],
    weighting: Weighting,
) -> dict[str, Tensor] | None:
    """The mean of one component over the sites that trained it.

    Autoencoder and UNet are weighted by the images a site trained on, the head by the labelled:
    a site without a label would otherwise average its untrained head in. None where no site counts.
    """
    weights = [site_weight(site, WEIGHTED_BY[component], weighting) for site in metrics]
    return weighted_mean(states, weights) if any(weights) else None


def moving_average(
    average: StateDict, current: StateDict, decay: float, round_number: int
) -> dict[str, Tensor]:
    """θ̄ ← d θ̄ + (1 - d) θ with d = min(decay, (r - 1) / (r + 1)).

    In the first rounds the decay is smaller, so that the initial weights are forgotten
    (arXiv 2312.02696 discusses such warm-up); round 1 takes the current weights as they are.
    """
    effective = min(decay, (round_number - 1) / (round_number + 1))
    return {
        name: average[name] * effective + value * (1 - effective) for name, value in current.items()
    }


def mean_metric(metrics: Sequence[Mapping[str, float]], name: str, weighted_by: str) -> float:
    """Weighted mean of a metric over the sites that report it; NaN where none does."""
    pairs = [(site[name], site[weighted_by]) for site in metrics if name in site]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else float("nan")
