"""Averaging the sites' weights, each component by the images that it was trained on."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mediffusion_core.settings import Weighting

StateDict = Mapping[str, Tensor]

TOGETHER = 1 << 16
"""Values that are added at once: a processor's cache holds all that their addition needs."""


class RunningMean:
    """Σ w_k θ_k / Σ w_k of one component, one site after another (FedAvg, arXiv 1602.05629).

    A sum is a float64, and a float32 with its rounding errors (TwoSum: Knuth, The Art of
    Computer Programming, volume 2, section 4.2.2, theorem B). So the order in which sites answer
    does not change the mean. It takes 12 bytes a value for any number of sites.
    """

    def __init__(self) -> None:
        """Nothing is summed yet."""
        self._weights: list[float] = []
        self._types: dict[str, torch.dtype] = {}
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, state: StateDict, weight: float) -> None:
        """Adds a site's component; with weight 0 its values do not matter.

        Args:
            state: All with the same keys and shapes.
            weight: Finite and not negative.

        Raises:
            ValueError: if weight or keys are not so.
        """
        if not 0 <= weight < math.inf:
            raise ValueError(f"a weight of {weight} does not make a mean")
        if not self._sums:
            self._types = {name: value.dtype for name, value in state.items()}
            self._sums = {name: _zeros(value.shape) for name, value in state.items()}
        if state.keys() != self._sums.keys():
            raise ValueError("the sites' components have different parameters")
        self._weights.append(weight)
        for name, (total, lost) in self._sums.items():
            if weight:
                _add(total.view(-1), lost.view(-1), state[name].flatten(), weight)

    def mean(self) -> dict[str, Tensor] | None:
        """The mean, in the sites' types; None where no site counts. Deletes the sums."""
        weight = math.fsum(self._weights)
        if not weight:
            return None
        mean = {}
        for name, dtype in self._types.items():
            total, lost = self._sums.pop(name)
            mean[name] = total.add_(lost).div_(weight).to(dtype)
        return mean


def _zeros(shape: torch.Size) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float32)


def _add(total: Tensor, lost: Tensor, values: Tensor, weight: float) -> None:
    """Adds weighted values to a sum, all (n,), in place."""
    for start in range(0, len(values), TOGETHER):
        part = slice(start, start + TOGETHER)
        before, added = total[part], values[part].double() * weight
        after = before + added
        kept = after - before
        lost[part] += (before - (after - kept)) + (added - kept)
        total[part] = after


def weighted_mean(states: Sequence[StateDict], weights: Sequence[float]) -> dict[str, Tensor]:
    """The `RunningMean` of states that are all there.

    Args:
        states: One state dict a site, all with the same keys and shapes.
        weights: One weight a site, not negative, not all zero.

    Raises:
        ValueError: if no weight is positive, or the states do not match.
    """
    running = RunningMean()
    for state, weight in zip(states, weights, strict=True):
        running.add(state, weight)
    mean = running.mean()
    if mean is None:
        raise ValueError(f"weights {list(weights)} do not make a mean")
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
