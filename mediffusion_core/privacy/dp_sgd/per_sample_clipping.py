"""Sums of gradients of which no unit's part is longer than a bound: the clipping of DP-SGD.

Opacus' hooks sit on the layers and see, in whatever method a network was called, what went in and
what came back. Row i of every call in a batch must be of the same unit i; a call may leave out the
last rows.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.dp_sgd import ghost_norms
from mediffusion_core.privacy.dp_sgd.ghost_norms import lengths

Mode = Literal["hooks", "ghost"]
Clipping = Literal["flat", "per_layer"]

TOLERANCE = 1e-3
"""Relative error that a per-unit gradient may have; see `gradient_check`. Rounding in fp32 was seen
to reach 1.4e-4 after a noised step; with Opacus' fault of channels-last it is 0.3 to 1."""


class Batch(Protocol):
    """Some units' rows, with all that was drawn for them."""

    def __len__(self) -> int:
        """How many units, n."""
        ...

    def take(self, units: Tensor) -> Self:
        """The rows of the units at the given ascending positions (m,) alone."""
        ...


B = TypeVar("B", bound=Batch)
Losses = Callable[[B], Tensor]
"""One loss a unit, (n,), of which the i-th depends on no other row; fixed but for dropout."""


class UnitGradients(Generic[B]):
    """Per-unit gradients of a network's trained parameters, clipped and summed.

    Used in a `with`: the hooks are gone afterwards, and parameters have no traces of them.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Losses[B],
        mode: Mode,
        clipping: Clipping = "flat",
        max_grad_norm: float = 1.0,
        guard: bool = True,
    ) -> None:
        """Puts the hooks on a network.

        Args:
            module: In training mode; what has `requires_grad` is trained.
            losses: Calls it; in mode `ghost` once a batch and with every row.
            mode: `hooks` holds each unit's gradient, `ghost` only its norm, and goes back twice.
            clipping: `flat` bounds a unit's whole gradient, `per_layer` each parameter's by an
                equal part of the bound.
            max_grad_norm: C, the bound on a unit's part of the sum.
            guard: Whether convolutions are given contiguous activations. Without it Opacus'
                per-sample gradients are wrong where activations are channels-last.

        Raises:
            UserError: if Opacus is not installed, or ghost clipping is to clip per layer.
        """
        if mode == "ghost" and clipping == "per_layer":
            raise UserError("ghost clipping knows whole norms alone, it cannot clip per layer")
        self.module, self.losses, self.mode = module, losses, mode
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # A norm that is too small by the tolerance must not lead past C.
        self.bound = max_grad_norm * (1 - TOLERANCE)
        self._per_layer = clipping == "per_layer"
        convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
        self._guards = [
            part.register_forward_pre_hook(_contiguous) for part in convolutions if guard
        ]
        self._first: list[nn.Parameter] = []
        trained = [
            part
            for part in module.modules()
            if any(p.requires_grad for p in part.parameters(recurse=False))
        ]
        self._guards += [part.register_forward_pre_hook(self._note_first) for part in trained]
        self._hooks = _opacus_hooks(module, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.cleanup()
        for handle in self._guards:
            handle.remove()

    def clipped_sum(self, batch: B) -> dict[str, Tensor]:
        """Σ_i g_i · min(1, C / ‖g_i‖) over the units of a batch, by parameter.

        A unit whose gradient is not finite adds nothing, and changes nothing of what others add.
        """
        sums = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        if not len(batch):
            return sums
        return self._hooked_sum(batch, sums) if self.mode == "hooks" else self._ghost_sum(batch)

    def samples(self, batch: B) -> dict[str, Tensor]:
        """Each unit's gradient by parameter, (n, …); mode `hooks`.

        Raises:
            RuntimeError: if a parameter has a gradient, and none for each unit.
        """
        self._back_to_units(self.losses(batch).sum())
        found = {}
        for name, p in self.parameters.items():
            sample: Tensor | None = p.grad_sample  # type: ignore[attr-defined]
            if sample is None and p.grad is not None:
                raise RuntimeError(f"{name} has a gradient, but none for each unit")
            found[name] = _rows(sample, len(batch), p)
        self._clear()
        return found

    def norms(self, batch: B) -> Tensor:
        """Each unit's norm ‖g_i‖, (n,)."""
        if self.mode == "hooks":
            rows = self.samples(batch).values()
            return _norms([lengths(one) for one in rows])
        losses = self.losses(batch)
        norms = self._ghost_norms(losses)
        self._clear()
        return norms

    def without_hooks(self, batch: B) -> dict[str, Tensor]:
        """The gradient of a batch's summed loss by plain autograd, by parameter."""
        self._hooks.disable_hooks()
        loss, parameters = self.losses(batch).sum(), list(self.parameters.values())
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:  # not where no loss reaches what is trained
            with _quiet():
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        self._hooks.enable_hooks()
        self._first = []
        return {
            name: torch.zeros_like(p) if gradient is None else gradient
            for (name, p), gradient in zip(self.parameters.items(), gradients, strict=True)
        }

    def _hooked_sum(self, batch: B, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        samples = self.samples(batch)
        norms = {name: lengths(one) for name, one in samples.items()}
        whole = _norms(list(norms.values()))  # (n,)
        finite = whole.isfinite()
        # 0 · ∞ is no number, so such rows are left out; without them nothing is copied.
        kept = slice(None) if finite.all() else finite
        share = self.bound / len(norms) ** 0.5
        for name, one in samples.items():
            factors = (
                _factors(norms[name], share) if self._per_layer else _factors(whole, self.bound)
            )
            sums[name] = torch.einsum("n,n...->...", factors[kept], one[kept])
        return sums

    def _ghost_sum(self, batch: B) -> dict[str, Tensor]:
        losses = self.losses(batch)  # (n,)
        norms = self._ghost_norms(losses)
        self._clear()
        finite = norms.isfinite()
        if not finite.all():
            # 0 · ∞ is no number, so these rows must not be in the pass that sums.
            return self.clipped_sum(batch.take(finite.nonzero().flatten().cpu()))
        self._hooks.disable_hooks()
        _backward((losses * _factors(norms, self.bound)).sum())
        self._hooks.enable_hooks()
        sums = {}
        for name, p in self.parameters.items():
            assert p.grad is not None
            sums[name] = p.grad
        self._clear()
        return sums

    def _ghost_norms(self, losses: Tensor) -> Tensor:
        self._back_to_units(losses.sum())
        norms = []
        for name, p in self.parameters.items():
            norm: Tensor | None = getattr(p, "_norm_sample", None)
            if norm is None or len(norm) != len(losses):
                raise RuntimeError(f"{name} has no norm of a gradient for each unit")
            norms.append(norm)
        return _norms(norms)

    def _back_to_units(self, loss: Tensor) -> None:
        """Goes back through all layers for their hooks, without the sums that nobody needs.

        To the layers that nothing trained lies before, and no further: on the way there every
        layer's hook sees its gradient, while the weights of all other layers get none.
        """
        first, self._first = self._first, []
        if loss.requires_grad:  # not where no unit of the batch has what is trained
            _backward(loss, retain_graph=self.mode == "ghost", inputs=first)

    def _note_first(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and not any(one.requires_grad for one in inputs):
            self._first += [p for p in layer.parameters(recurse=False) if p.requires_grad]

    def _clear(self) -> None:
        for p in self.parameters.values():
            p.grad = None
            p.grad_sample = None  # type: ignore[attr-defined]
            if hasattr(p, "_norm_sample"):
                del p._norm_sample


def _rows(sample: Tensor | None, units: int, parameter: nn.Parameter) -> Tensor:
    """Gradients of all units, (n, …), of which `sample` has the first; those behind have none."""
    if sample is not None and len(sample) == units:
        return sample
    rows = parameter.new_zeros((units, *parameter.shape))
    if sample is not None:
        rows[: len(sample)] = sample
    return rows


def _norms(parts: list[Tensor]) -> Tensor:
    """Whole norms (n,) of vectors whose parts have the given norms (n,)."""
    whole: Tensor = torch.stack(parts).double().norm(dim=0)
    return whole


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that first layers' inputs need no gradient, which is as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        yield


def _backward(
    loss: Tensor, retain_graph: bool = False, inputs: Sequence[Tensor] | None = None
) -> None:
    with _quiet():
        loss.backward(retain_graph=retain_graph, inputs=inputs)


def _factors(norms: Tensor, bound: float) -> Tensor:
    return (bound / norms.clamp(min=1e-30)).clamp(max=1.0).float()


def _contiguous(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.contiguous() for one in inputs)


def _opacus_hooks(module: nn.Module, mode: Mode) -> Any:
    try:
        from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping

        ghost_norms.register()
    except ImportError:
        raise UserError(
            "private training needs Opacus: pip install 'fed-mediffusion[privacy]'"
        ) from None
    kinds = {"hooks": GradSampleHooks, "ghost": GradSampleHooksFastGradientClipping}
    # Strict: layers with buffers, such as BatchNorm, mix the units of a batch and are refused.
    return kinds[mode](module, loss_reduction="sum", strict=True)
