"""Adam's moments, which travel and are averaged as the weights are.

The first steps of a new optimizer have the length of the learning rate for any gradient, and they
are most of a round of a few dozen steps. So the server keeps the moments beside the weights and
averages both (local Adam with averaged moments; FedAvg is arXiv 1602.05629, Adam 1412.6980).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mediffusion_core.messaging.moment_names import MEAN, SQUARE, STEPS


def fresh_moments(module: nn.Module) -> dict[str, Tensor]:
    """Moments before the first step: all zero.

    Returns:
        For each parameter NAME its `NAME.exp_avg` and `NAME.exp_avg_sq`, shaped as the parameter,
        and `steps`, the number of steps made, a float32 scalar since it is averaged over sites.
    """
    moments = {STEPS: torch.zeros(())}
    for name, parameter in module.named_parameters():
        moments[name + MEAN] = torch.zeros_like(parameter, device="cpu")
        moments[name + SQUARE] = torch.zeros_like(parameter, device="cpu")
    return moments


def load_moments(
    optimizer: torch.optim.Optimizer, module: nn.Module, moments: Mapping[str, Tensor]
) -> None:
    """Lets an optimizer of Adam's kind continue from the given moments of one of its modules.

    Raises:
        KeyError: if a parameter's moments are missing.
        ValueError: if they have another shape than the parameter.
    """
    for name, parameter in module.named_parameters():
        mean, square = moments[name + MEAN], moments[name + SQUARE]
        if mean.shape != parameter.shape or square.shape != parameter.shape:
            raise ValueError(f"moments of {name} are {tuple(mean.shape)}, not {parameter.shape}")
        optimizer.state[parameter] = {
            # On the parameter's device, where PyTorch's fused kernel counts.
            "step": moments[STEPS].to(parameter.device, copy=True),
            "exp_avg": mean.to(parameter.device, copy=True),
            "exp_avg_sq": square.to(parameter.device, copy=True),
        }


def read_moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The moments of one of an optimizer's modules, as `fresh_moments` shapes them, on the CPU.

    Moments of a parameter that had no gradient yet are zero.
    """
    moments = fresh_moments(module)
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        # All parameters with a gradient have made the same number of steps.
        moments[STEPS] = torch.maximum(moments[STEPS], state["step"].detach().cpu())
        moments[name + MEAN] = state["exp_avg"].detach().cpu()
        moments[name + SQUARE] = state["exp_avg_sq"].detach().cpu()
    return moments


def steps_behind(optimizer: torch.optim.Optimizer) -> float:
    """How many steps the optimizer has made over all rounds; 0 for a new one."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    first = next(p for p in parameters if p.requires_grad)
    return float(optimizer.state[first]["step"]) if first in optimizer.state else 0.0
