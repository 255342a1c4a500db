"""FedProx: a proximal term towards the weights that the site was sent."""

from torch import nn


class Proximal:
    """Adds the gradient μ (θ - θ_global) of μ/2 ‖θ - θ_global‖².

    FedProx, arXiv 1812.06127, equation 2.
    """

    def __init__(self, module: nn.Module, weight: float) -> None:
        """Takes the module as it was sent, and μ; with μ = 0 it does nothing."""
        self._weight = weight
        self._pairs = [(p, p.detach().clone()) for p in module.parameters()] if weight else []

    def add_gradients(self) -> None:
        """Adds the gradient of the term to that of the loss, where there is one."""
        for parameter, sent in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - sent, alpha=self._weight)
