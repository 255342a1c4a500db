"""Per-sample clipping of DP-SGD: sums of gradients with a bound on each unit's norm.

One backward pass records the input of every trained layer's call and the loss' gradient at its
output. `layer_gradients` computes norms and clipped sums from them. Row i of every call in a batch
must belong to unit i. A call may leave out the last rows.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Generic, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from mediffusion_core.privacy.dp_sgd.layer_gradients import (
    ByParameter,
    LayerGradients,
    as_maps,
    gradients_of,
)

Clipping = Literal["flat", "per_layer"]

TOLERANCE = 1e-3
"""Largest relative error of a per-sample gradient, see `gradient_check`. Rounding in fp32 reaches
1.4e-4 after a noised step; Opacus' fault with channels-last activations causes 0.3 to 1."""


LONGEST = 1e30
"""Norm over C from which on a gradient counts as not finite: its factor would leave the range of
single precision."""


class Batch(Protocol):
    """Rows of some units, with their noise, noise levels and labels."""

    def __len__(self) -> int:
        """Number of units, n."""
        ...

    def take(self, units: Tensor) -> Self:
        """The rows of the units at the ascending positions (m,)."""
        ...


B = TypeVar("B", bound=Batch)
K = TypeVar("K")
Losses = Callable[[B], Tensor]
"""One loss per unit, (n,). Loss i depends on row i alone; only dropout is random."""


class PerSampleGradients(Generic[B]):
    """Per-sample gradients of a network's trained parameters, clipped and summed.

    A context manager: its end removes the hooks.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Losses[B],
        clipping: Clipping = "flat",
        max_grad_norm: float = 1.0,
    ) -> None:
        """Puts the hooks on a network.

        Args:
            module: In training mode. Parameters with `requires_grad` are trained.
            losses: Calls the module.
            clipping: `flat` bounds the norm of a unit's whole gradient, `per_layer` the norm of
                each of its P parameter gradients by C / √P.
            max_grad_norm: C, the largest norm of a unit's gradient in the sum.

        Raises:
            UserError: if Opacus is not installed.
            NotImplementedError: for a trained layer of a kind without per-sample gradients, and for
                one with buffers, such as BatchNorm: these mix the units of a batch.
        """
        self.module, self.losses = module, losses
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # A computed norm may be too small by the tolerance; C still holds then.
        self.bound = max_grad_norm * (1 - TOLERANCE)
        self._per_layer = clipping == "per_layer"
        self._record: _Record | None = None
        trained = [part for part in module.modules() if _own(part)]
        for layer in trained:
            gradients_of(layer, positions=1)
        if sum(len(_own(layer)) for layer in trained) > len(self.parameters):
            raise NotImplementedError("per-sample gradients of a parameter of two layers")
        self._hooks = [layer.register_forward_hook(self._called) for layer in trained]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._hooks:
            handle.remove()

    def clipped_sum(self, batch: B) -> dict[str, Tensor]:
        """Σ_i g_i · min(1, C / ‖g_i‖) over the units of a batch, by parameter.

        A unit with a gradient that is not finite, or longer than 1e30 C, adds nothing and leaves
        the others unchanged.
        """
        sums: ByParameter = {}
        if len(batch):
            record = self._backward(batch)
            norms = self._norms(record, len(batch))
            factors = self.factors(norms)
            finite = whole_norms(norms) < LONGEST * self.bound  # false for NaN
            if not finite.all():  # 0 · ∞ is NaN, so the sums must not contain these rows
                record.keep(finite)
                factors = {p: one[finite] for p, one in factors.items()}
            sums = record.sums(factors)
        return {
            name: sums[p] if p in sums else torch.zeros_like(p)
            for name, p in self.parameters.items()
        }

    def factors(self, norms: Mapping[K, Tensor]) -> dict[K, Tensor]:
        """Each unit's factor min(1, C / ‖g_i‖) by parameter, (n,), from norms by parameter."""
        if self._per_layer:
            share = self.bound / len(self.parameters) ** 0.5
            return {key: _factors(one, share) for key, one in norms.items()}
        whole = _factors(whole_norms(norms), self.bound)
        return dict.fromkeys(norms, whole)

    def norms_by_parameter(self, batch: B) -> ByParameter:
        """The norms of all units' gradients by parameter, (n,)."""
        return self._norms(self._backward(batch), len(batch))

    def by_autograd(self, batch: B) -> dict[str, Tensor]:
        """The gradient of a batch's summed loss by plain autograd, by parameter."""
        loss, parameters = self.losses(batch).sum(), list(self.parameters.values())
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:  # false if no loss depends on a trained parameter
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {
            name: torch.zeros_like(p) if gradient is None else gradient
            for (name, p), gradient in zip(self.parameters.items(), gradients, strict=True)
        }

    def _backward(self, batch: B) -> "_Record":
        """Records the calls of a batch.

        The pass ends at the outputs of the first trained layers and computes no weight gradients.
        """
        self._record = record = _Record()
        try:
            loss = self.losses(batch).sum()
        finally:
            self._record = None
        if loss.requires_grad:  # false if no unit's loss depends on a trained parameter
            torch.autograd.grad(loss, record.first, allow_unused=True)
        record.first.clear()  # the graph's hooks hold the record: a cycle would keep both
        return record

    def _norms(self, record: "_Record", units: int) -> ByParameter:
        """The units' norms by parameter, (n,); 0 where no loss depends on the parameter."""
        none = {p: p.new_zeros(units, dtype=torch.float64) for p in self.parameters.values()}
        return none | record.norms(units)

    def _called(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._record:
            self._record.called(layer, inputs[0], output)


class _Record:
    """The calls of trained layers in one pass, and the gradients that follow from them."""

    def __init__(self) -> None:
        self.first: list[Tensor] = []
        self._positions: Counter[nn.Module] = Counter()
        self._gradients: dict[nn.Module, list[LayerGradients]] = {}

    def called(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        if not output.requires_grad:
            return
        if not inputs.requires_grad:
            self.first.append(output)
        self._positions[layer] += max(as_maps(layer, one)[0, 0].numel() for one in (inputs, output))
        # Taken out in the backward pass: the graph's nodes keep their hooks until its end.
        given = [inputs.detach()]
        output.register_hook(lambda behind: self._passed(layer, given.pop(), behind))

    def _passed(self, layer: nn.Module, inputs: Tensor, behind: Tensor) -> None:
        if layer not in self._gradients:
            self._gradients[layer] = gradients_of(layer, self._positions[layer])
        inputs, behind = as_maps(layer, inputs), as_maps(layer, behind.detach())
        for one in self._gradients[layer]:
            one.add(inputs, behind)

    def norms(self, units: int) -> ByParameter:
        return {p: norm for one in self._all() for p, norm in one.norms(units).items()}

    def keep(self, units: Tensor) -> None:
        for one in self._all():
            one.keep(units)

    def sums(self, factors: ByParameter) -> ByParameter:
        return {p: whole for one in self._all() for p, whole in one.sums(factors).items()}

    def _all(self) -> Iterator[LayerGradients]:
        return chain.from_iterable(self._gradients.values())


def _own(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in layer.parameters(recurse=False) if p.requires_grad]


def whole_norms(norms: Mapping[K, Tensor]) -> Tensor:
    """Norms (n,) of units' whole gradients, from those by parameter."""
    whole: Tensor = torch.stack(list(norms.values())).double().norm(dim=0)
    return whole


def _factors(norms: Tensor, bound: float) -> Tensor:
    return (bound / norms.clamp(min=1e-30)).clamp(max=1.0).float()
