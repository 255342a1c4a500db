"""SCAFFOLD at a site: control variates correct its gradients towards the mean of all sites."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ControlVariate:
    """Adds c - c_k to each gradient of a module, and keeps the mean of the gradients before that.

    SCAFFOLD, arXiv 1910.06378, algorithm 1: c_k is the site's gradient in its last round, c the
    mean over the sites. At the common optimum c = 0 and the site's gradient is c_k, so the site
    stays there for any number of steps; with averaging alone it would drift to its own optimum.

    The paper uses plain SGD. Its option II sets c_k to c_k - c + (θ_global - θ) / (K η):
    for SGD the mean of the round's K gradients. For AdamW it is a mean of scaled, decayed
    steps, which is no gradient. So the gradients themselves are averaged, before clipping and
    without the terms of FedProx and AdamW, which are no part of the loss. Option I (the gradient at
    θ_global) costs a second pass over the data. c - c_k is added before clipping, so AdamW's
    moments are those of corrected gradients and can be averaged over the sites.
    """

    def __init__(self, module: nn.Module, correction: Mapping[str, Tensor]) -> None:
        """Takes a module and c - c_k by parameter; a parameter without one is not corrected."""
        self._parameters = dict(module.named_parameters())
        self._correction = {
            name: value.to(self._parameters[name].device) for name, value in correction.items()
        }
        self._sums = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._steps = 0

    def correct_gradients(self) -> None:
        """To be called once a step, between `backward` and the clipping."""
        self._steps += 1
        for name, parameter in self._parameters.items():
            if parameter.grad is None:  # of a head, at a site without labels
                continue
            self._sums[name] += parameter.grad
            if name in self._correction:
                parameter.grad += self._correction[name]

    def mean_gradient(self) -> dict[str, Tensor]:
        """The next c_k: by parameter, shaped as it, on the CPU; zero before the first step."""
        steps = max(self._steps, 1)
        return {name: (total / steps).cpu() for name, total in self._sums.items()}
