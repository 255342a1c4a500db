"""Per-sample clipping of DP-SGD: sums of gradients with a bound on each unit's norm.

Opacus' hooks record inputs and output gradients of every layer call. Row i of every call in a batch
must belong to unit i. A call may leave out the last rows.
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
"""Largest relative error of a per-sample gradient, see `gradient_check`. Rounding in fp32 reaches
1.4e-4 after a noised step; Opacus' fault with channels-last activations causes 0.3 to 1."""


class Batch(Protocol):
    """Rows of some units, with their noise, noise levels and labels."""

    def __len__(self) -> int:
        """Number of units, n."""
        ...

    def take(self, units: Tensor) -> Self:
        """The rows of the units at the ascending positions (m,)."""
        ...


B = TypeVar("B", bound=Batch)
Losses = Callable[[B], Tensor]
"""One loss per unit, (n,). Loss i depends on row i alone; only dropout is random."""


class PerSampleGradients(Generic[B]):
    """Per-sample gradients of a network's trained parameters, clipped and summed.

    A context manager: its end removes the hooks and the attributes that Opacus adds to parameters.
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
            module: In training mode. Parameters with `requires_grad` are trained.
            losses: Calls the module; in mode `ghost` once per batch, with every row.
            mode: `hooks` holds all per-sample gradients. `ghost` holds their norms alone and needs
                two backward passes.
            clipping: `flat` bounds the norm of a unit's whole gradient, `per_layer` the norm of
                each of its P parameter gradients by C / √P.
            max_grad_norm: C, the largest norm of a unit's gradient in the sum.
            guard: Makes the inputs of convolutions contiguous. Without it Opacus' per-sample
                gradients are wrong for channels-last activations.

        Raises:
            UserError: if Opacus is not installed, or for mode `ghost` with `per_layer`.
        """
        if mode == "ghost" and clipping == "per_layer":
            raise UserError(
                "ghost clipping cannot clip per layer: it computes norms of whole gradients only"
            )
        self.module, self.losses, self.mode = module, losses, mode
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # A computed norm may be too small by the tolerance; C still holds then.
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

        A unit with a gradient that is not finite adds nothing and leaves the others unchanged.
        """
        sums = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        if not len(batch):
            return sums
        return self._hooked_sum(batch, sums) if self.mode == "hooks" else self._ghost_sum(batch)

    def samples(self, batch: B) -> dict[str, Tensor]:
        """Per-sample gradients by parameter, (n, …); mode `hooks` only.

        Raises:
            RuntimeError: if a parameter has a gradient but no per-sample gradients.
        """
        self._back_to_units(self.losses(batch).sum())
        found = {}
        for name, p in self.parameters.items():
            sample: Tensor | None = p.grad_sample  # type: ignore[attr-defined]
            if sample is None and p.grad is not None:
                raise RuntimeError(f"{name} has a gradient, but no per-sample gradients")
            found[name] = _rows(sample, len(batch), p)
        self._clear()
        return found

    def norms(self, batch: B) -> Tensor:
        """The norms ‖g_i‖ of all units, (n,)."""
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
        if loss.requires_grad:  # false if no loss depends on a trained parameter
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
        # 0 · ∞ is NaN, so rows that are not finite are left out. A full slice copies nothing.
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
            # 0 · ∞ is NaN, so the summing pass must not contain these rows.
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
                raise RuntimeError(f"{name} has no per-sample gradient norms")
            norms.append(norm)
        return _norms(norms)

    def _back_to_units(self, loss: Tensor) -> None:
        """Runs the backward pass for the hooks, without the summed gradients of the weights.

        The pass ends at the first trained layers. Every trained layer's hook fires on the way, but
        autograd computes weight gradients for the first trained layers alone.
        """
        first, self._first = self._first, []
        if loss.requires_grad:  # false if no unit's loss depends on a trained parameter
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
    """Per-sample gradients of all units, (n, …): those of `sample`, then zeros."""
    if sample is not None and len(sample) == units:
        return sample
    rows = parameter.new_zeros((units, *parameter.shape))
    if sample is not None:
        rows[: len(sample)] = sample
    return rows


def _norms(parts: list[Tensor]) -> Tensor:
    """Norms (n,) of concatenated vectors, from the norms (n,) of their parts."""
    whole: Tensor = torch.stack(parts).double().norm(dim=0)
    return whole


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences PyTorch's warning that the inputs of the first layers need no gradient."""
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
    # Strict refuses layers with buffers, such as BatchNorm: they mix the units of a batch.
    return kinds[mode](module, loss_reduction="sum", strict=True)
