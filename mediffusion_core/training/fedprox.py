"""FedProx: a proximal term holds a site near the weights it was sent."""

from torch import nn


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
