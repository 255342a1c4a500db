"""Adam's moments as weights are: sent to the sites, continued there, and averaged.

A site whose optimizer starts anew in each round wastes its first steps: they are as long as the
learning rate whatever the gradient, and in a round of a few dozen steps they are most of it. So the
server keeps the moments beside the weights and averages them alike (local Adam with averaged
moments; FedAvg alone is arXiv 1602.05629, Adam 1412.6980).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mediffusion_core.messaging.moment_names import MEAN, SQUARE, STEPS


def fresh_moments(module: nn.Module) -> dict[str, Tensor]:
    """Moments of an optimizer that has not made a step: all zero.

    Returns:
        For each parameter NAME its `NAME.exp_avg` and `NAME.exp_avg_sq`, shaped as the parameter,
        and `steps`, the number of steps behind them, a float32 scalar: a mean over sites is none.
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
            # Where the parameter stands: PyTorch's fused kernel counts there.
            "step": moments[STEPS].to(parameter.device, copy=True),
            "exp_avg": mean.to(parameter.device, copy=True),
            "exp_avg_sq": square.to(parameter.device, copy=True),
        }


def read_moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The moments of one of an optimizer's modules, as `fresh_moments` shapes them, on the CPU.

    A parameter that no loss has reached has no moments yet: they are zero.
    """
    moments = fresh_moments(module)
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        # Those of a module's parameters that a loss reaches step together.
        moments[STEPS] = torch.maximum(moments[STEPS], state["step"].detach().cpu())
        moments[name + MEAN] = state["exp_avg"].detach().cpu()
        moments[name + SQUARE] = state["exp_avg_sq"].detach().cpu()
    return moments


def steps_behind(optimizer: torch.optim.Optimizer) -> float:
    """How many steps its first trained parameter has made, over all rounds; 0 when fresh."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    first = next(p for p in parameters if p.requires_grad)
    return float(optimizer.state[first]["step"]) if first in optimizer.state else 0.0
