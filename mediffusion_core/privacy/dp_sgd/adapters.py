"""Low-rank adapters: small trained layers beside frozen ones, merged at the end of a round.

A layer's weights W get a product B A of rank r, with B = 0 at first (LoRA, arXiv 2106.09685; with
DP-SGD arXiv 2110.06500). The noise of DP-SGD and the memory of per-sample gradients grow with the
number of trained weights. A layer of d inputs and d outputs has d² weights, its adapter 2 r d. For
a convolution, A is a convolution to r channels, and B is a 1x1 convolution.

At the end of a round W becomes W + B A, and the server averages the merged weights. Averages of A
and of B would have another product than the average of B A.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A frozen layer with a trained low-rank adapter."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        """Takes the layer and r. The output equals the layer's until the adapter is trained."""
        super().__init__()
        self.layer = layer
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            window: dict[str, Any] = {
                name: getattr(layer, name)
                for name in ("kernel_size", "stride", "padding", "dilation")
            }
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **window)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        self.to(layer.weight.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum of the layer's and the adapter's output."""
        whole: Tensor = self.layer(inputs) + self.up(self.down(inputs))
        return whole

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """The layer, with the adapter added to its weights."""
        down, up = self.down.weight, self.up.weight.flatten(1)  # (r, in, …), (out, r)
        self.layer.weight += torch.einsum("or,r...->o...", up, down)
        return self.layer


@contextmanager
def adapted(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    learning_rate: float,
    without: tuple[str, ...] = (),
) -> Iterator[None]:
    """Adds adapters to a module's linear layers and convolutions, for an optimizer to train.

    A layer gets an adapter only if the adapter has fewer weights. At the end of the context the
    adapters are merged, and module and optimizer have their former layers and parameters.

    Args:
        module: The caller freezes the layers that get adapters.
        optimizer: Gets the adapters as a further group, with new moments.
        rank: r.
        learning_rate: `base` of the group.
        without: Prefixes of the names of layers without adapters.
    """
    slots = [
        (parent, name, layer)
        for path, parent in module.named_modules()
        for name, layer in parent.named_children()
        if not f"{path}.{name}".lstrip(".").startswith(without) and _gains(layer, rank)
    ]
    adapters = [Adapter(layer, rank) for _, _, layer in slots]
    parameters = [p for one in adapters for part in (one.down, one.up) for p in part.parameters()]
    for (parent, name, _), adapter in zip(slots, adapters, strict=True):
        parent._modules[name] = adapter
    optimizer.add_param_group({"params": parameters, "base": learning_rate})
    try:
        yield
    finally:
        for (parent, name, _), adapter in zip(slots, adapters, strict=True):
            parent._modules[name] = adapter.merged()
        del optimizer.param_groups[-1]
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def _gains(layer: nn.Module, rank: int) -> bool:
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1 or layer.padding_mode != "zeros":
            return False
    elif not isinstance(layer, nn.Linear):
        return False
    weight = layer.weight
    return rank * (weight[0].numel() + len(weight)) < weight.numel()
