"""Low-rank adapters: small trained parts beside frozen layers, merged before the weights leave.

Beside a layer's weights W stands B A of rank r, with B = 0 at first (arXiv 2106.09685; under
DP-SGD 2110.06500). DP-SGD's noise grows with the number of trained weights, and the gradients of
single units take memory by it; of a layer of d inputs and outputs these are 2 r d for d². For a
convolution A is one of r channels, and B one of 1x1.

At the end of a round W becomes W + B A, so that the server averages the sites' products. The
product of averaged A and B would be another matrix.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A frozen layer with a low-rank part beside it."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        """Takes the layer, which stays the same function until the part is trained."""
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
        """What the layer gives, and its adapter."""
        whole: Tensor = self.layer(inputs) + self.up(self.down(inputs))
        return whole

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """The layer, with the part in its weights."""
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
    """Lets an optimizer train adapters of a module's linear layers and convolutions.

    Layers that would not get smaller by it have none. When the context ends they are merged, the
    module has its own layers again, and the optimizer its own parameters.

    Args:
        module: Frozen by the caller, as far as adapters shall stand for it.
        optimizer: Gets the adapters as another group, whose moments begin anew.
        rank: r.
        learning_rate: Their `base`.
        without: How the names of layers without adapters begin.
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
