"""Per-sample gradients of a layer's parameters: their norms, and their sum with factors.

A unit's gradient of the weights of a convolution is Σ_t b_t a_tᵀ over T positions, with patches a_t
of the input (P numbers, from I channels) and output gradients b_t (O numbers). Its squared norm is

    ‖Σ_t b_t a_tᵀ‖² = Σ_{t,s} (b_t · b_s) (a_t · a_s)

(ghost clipping of convolutions, arXiv 2205.10683, section 3), and the sum of all units' gradients
with factors f_i is the weights' gradient for the output gradients f_i b_i (book-keeping, arXiv
2210.00038, section 2). Input and output gradients suffice for both. They have T (I + O) numbers, a
unit's gradient has P O: `Factored` holds the former, `Held` the latter. The coarse levels of a UNet
hold most weights, and T is 4 to 64 there. A linear layer is a convolution with a window of 1x1.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from mediffusion_core.common.errors import UserError

BLOCK = 1024
"""Squares per sum in single precision; the relative error is about 1e-6."""
CANCELLED = 1e-3
"""Least norm of a unit's gradient that is held by its parts, as a share of the norms of its terms.
The sum that leaves is computed in single precision, with an error of about 1e-6 of these norms at
most. Were the terms to cancel to less, the norm of that error would be above the computed one."""
UNITS = 16
"""Units whose gradients are computed at once; bounds the memory for copies of their inputs."""

ByParameter = dict[nn.Parameter, Tensor]


class LayerGradients(Protocol):
    """Gradients of some parameters of a layer for each of n units."""

    def add(self, inputs: Tensor, behind: Tensor) -> None:
        """Adds a call of the layer, given its input and the loss' gradient at its output.

        Row i is of unit i. The last units may have no row.
        """
        ...

    def norms(self, units: int) -> ByParameter:
        """Norms of all units' gradients, (n,) float64; 0 without a row."""
        ...

    def keep(self, units: Tensor) -> None:
        """Drops all units but those of a mask (n,)."""
        ...

    def sums(self, factors: Mapping[nn.Parameter, Tensor]) -> ByParameter:
        """Σ_i f_i g_i, given the units' factors f (n,) by parameter."""
        ...


class Window(NamedTuple):
    """The window of a convolution, by (rows, columns)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, layer: nn.Module) -> "Window | None":
        """That of a linear layer or a convolution; None for other layers and grouped channels."""
        if isinstance(layer, nn.Linear):
            return cls((1, 1), (1, 1), (0, 0), (1, 1))
        if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
            return None
        if layer.groups > 1 or layer.padding_mode != "zeros":
            return None
        return cls(layer.kernel_size, layer.stride, layer.padding, layer.dilation)

    def part(self, axis: int, offset: int, count: int) -> slice:
        """Where `count` windows have their pixel number `offset`, in a padded map."""
        first, stride = offset * self.dilation[axis], self.stride[axis]
        return slice(first, first + (count - 1) * stride + 1, stride)


def gradients_of(layer: nn.Module, positions: int) -> list[LayerGradients]:
    """Empty gradients of a layer's trained parameters, for T positions in all its calls.

    The norm takes T² (I + O) operations from input and output gradients, T P O from the gradients.
    The former are in double precision, which takes a CPU twice the time.
    """
    trained = [p for p in layer.parameters(recurse=False) if p.requires_grad]
    window = Window.of(layer)
    if window is None:
        return [Held(_rule_of_opacus(layer, trained))]
    weight = layer.get_parameter("weight")
    outputs, inputs = weight.shape[:2]
    found: list[LayerGradients] = []
    if any(p is weight for p in trained):
        few = 2 * positions * (inputs + outputs) < weight.numel()
        found.append(Factored(weight, window) if few else HeldWeight(weight, window))
    if any(p is not weight for p in trained):
        found.append(Held(_rule_of_bias(layer.get_parameter("bias"))))
    return found


def as_maps(layer: nn.Module, rows: Tensor) -> Tensor:
    """Inputs or outputs of a layer; those of a linear layer (m, …, C) as maps (m, C, T, 1)."""
    if isinstance(layer, nn.Linear):
        return rows.reshape(len(rows), -1, rows.shape[-1]).transpose(1, 2).unsqueeze(3)
    return rows


class Factored:
    """Gradients of a layer's weights, held by input and output gradients."""

    def __init__(self, weight: nn.Parameter, window: Window) -> None:
        """Takes the weights (O, I, …) and their window."""
        self._weight, self._window = weight, window
        self._calls: list[tuple[Tensor, Tensor]] = []

    def add(self, inputs: Tensor, behind: Tensor) -> None:
        """As `LayerGradients`, (m, I, H, W) and (m, O, h, w)."""
        self._calls.append((inputs, behind))

    def norms(self, units: int) -> ByParameter:
        """As `LayerGradients`; each pair of calls has its products of positions.

        A norm is at least Σ_t ‖b_t‖ ‖a_t‖ times `CANCELLED`.
        """
        squares = torch.zeros(units, dtype=torch.float64, device=self._weight.device)
        terms = torch.zeros_like(squares)
        for number, (inputs, behind) in enumerate(self._calls):
            for other, (others, beyond) in enumerate(self._calls[: number + 1]):
                rows = min(len(inputs), len(others))
                outer = _products(behind[:rows], beyond[:rows])
                inner = self._of_patches(_products(inputs[:rows], others[:rows]), outer.shape[1:])
                products = inner * outer  # (m, h, w, h', w')
                pairs = 1 if other == number else 2
                squares[:rows] += pairs * products.flatten(1).sum(dim=1)
                if other == number:
                    own = products.flatten(3).flatten(1, 2).diagonal(dim1=1, dim2=2)  # (m, T)
                    terms[:rows] += own.sqrt().sum(dim=1)
        return {self._weight: torch.maximum(squares.clamp(min=0).sqrt(), CANCELLED * terms)}

    def keep(self, units: Tensor) -> None:
        """As `LayerGradients`."""
        self._calls = [(a[units[: len(a)]], b[units[: len(b)]]) for a, b in self._calls]

    def sums(self, factors: Mapping[nn.Parameter, Tensor]) -> ByParameter:
        """As `LayerGradients`."""
        kernel, *window = self._window
        shape = (*self._weight.shape[:2], *kernel)
        parts = []
        with _single_precision():
            for inputs, behind in self._calls:
                scaled = behind * factors[self._weight][: len(behind), None, None, None]
                parts.append(conv2d_weight(inputs, shape, scaled, *window))
        whole: Tensor = sum(parts[1:], parts[0])
        return {self._weight: whole.view_as(self._weight)}

    def _of_patches(self, pixels: Tensor, windows: torch.Size) -> Tensor:
        """Products of patches (m, h, w, h', w'), from those of pixels (m, H, W, H', W').

        A product of patches is the sum over the window of the products of pixels: first over its
        rows, then over its columns.
        """
        for axis, size in enumerate(self._window.kernel):
            padding = self._window.padding[axis]
            around = [0, 0, padding, padding] if axis == 0 else [padding, padding, 0, 0]
            padded = F.pad(pixels, around * 2)
            pixels = padded.new_zeros(())
            for offset in range(size):
                first = self._window.part(axis, offset, windows[axis])
                second = self._window.part(axis, offset, windows[axis + 2])
                whole = slice(None)
                at = (first, whole, second) if axis == 0 else (whole, first, whole, second)
                pixels = pixels + padded[(whole, *at)]
        return pixels


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of all positions of two maps, (m, h, w, h', w') float64.

    Double precision holds products of single precision exactly. In single precision, a norm much
    smaller than its terms would be wrong, and might be too small.
    """
    flat = first.double().flatten(2).transpose(1, 2) @ second.double().flatten(2)
    found: Tensor = flat.unflatten(2, second.shape[2:]).unflatten(1, first.shape[2:])
    return found


@contextmanager
def _single_precision() -> Iterator[None]:
    """Without TF32, by default on in cuDNN's convolutions: its error is 5e-4 of the terms."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


class Held:
    """Gradients of some parameters as they are, (n, …) each."""

    def __init__(self, rule: Callable[[Tensor, Tensor], ByParameter]) -> None:
        """Takes the rule that gives the gradients of a call, with arguments as of `add`."""
        self._rule = rule
        self._samples: ByParameter = {}

    def add(self, inputs: Tensor, behind: Tensor) -> None:
        """As `LayerGradients`."""
        for parameter, rows in self._rule(inputs, behind).items():
            held = self._samples.get(parameter, rows[:0])
            longer, shorter = (rows, held) if len(rows) > len(held) else (held, rows)
            longer[: len(shorter)] += shorter
            self._samples[parameter] = longer

    def norms(self, units: int) -> ByParameter:
        """As `LayerGradients`."""
        return {p: F.pad(lengths(one), (0, units - len(one))) for p, one in self._samples.items()}

    def keep(self, units: Tensor) -> None:
        """As `LayerGradients`."""
        self._samples = {p: one[units[: len(one)]] for p, one in self._samples.items()}

    def sums(self, factors: Mapping[nn.Parameter, Tensor]) -> ByParameter:
        """As `LayerGradients`."""
        return {
            p: torch.einsum("n,n...->...", factors[p][: len(one)], one)
            for p, one in self._samples.items()
        }


class HeldWeight(Held):
    """Gradients of a layer's weights, (n, rows and columns of the window, I, O)."""

    def __init__(self, weight: nn.Parameter, window: Window) -> None:
        """Takes the weights (O, I, …) and their window."""
        super().__init__(self._of_call)
        self._weight, self._window = weight, window

    def sums(self, factors: Mapping[nn.Parameter, Tensor]) -> ByParameter:
        """As `LayerGradients`."""
        return {
            p: whole.permute(3, 2, 0, 1).reshape(p.shape)
            for p, whole in super().sums(factors).items()
        }

    def _of_call(self, inputs: Tensor, behind: Tensor) -> ByParameter:
        outputs, channels = self._weight.shape[:2]
        samples = inputs.new_empty((len(inputs), *self._window.kernel, channels, outputs))
        for some in zip(
            samples.split(UNITS), inputs.split(UNITS), behind.split(UNITS), strict=True
        ):
            self._fill(*some)
        return {self._weight: samples}

    def _fill(self, samples: Tensor, inputs: Tensor, behind: Tensor) -> None:
        """Sets the gradients of some units: Σ_t a_t b_tᵀ for each row of the window.

        The inputs moved by each column of the window are copied; the rows are slices of them.
        """
        (rows, columns), (across, along) = self._window.kernel, behind.shape[2:]
        above, beside = self._window.padding
        padded = F.pad(inputs, (beside, beside, above, above))
        parts = [padded[..., self._window.part(1, column, along)] for column in range(columns)]
        moved = torch.stack(parts, dim=1).flatten(1, 2)  # (m, columns I, H, w)
        outer = behind.flatten(2).transpose(1, 2)  # (m, T, O)
        for row in range(rows):
            part = moved[:, :, self._window.part(0, row, across)].flatten(2)
            samples[:, row] = (part @ outer).view_as(samples[:, row])


def _rule_of_bias(bias: nn.Parameter) -> Callable[[Tensor, Tensor], ByParameter]:
    return lambda _inputs, behind: {bias: behind.sum(dim=(2, 3))}


def _rule_of_opacus(
    layer: nn.Module, trained: list[nn.Parameter]
) -> Callable[[Tensor, Tensor], ByParameter]:
    """Opacus' rule for a layer.

    Its rule for convolutions is wrong for activations that are channels-last, which diffusers'
    attention returns. Both arguments are therefore made contiguous.
    """
    try:
        from opacus.grad_sample import GradSampleHooks
    except ImportError:
        raise UserError(
            "private training needs Opacus: pip install 'fed-mediffusion[privacy]'"
        ) from None
    rule: Any = GradSampleHooks.GRAD_SAMPLERS.get(type(layer))
    if rule is None or list(layer.buffers()):
        raise NotImplementedError(
            f"{type(layer).__name__} has buffers, or no rule for per-sample gradients"
        )

    def samples(inputs: Tensor, behind: Tensor) -> ByParameter:
        found = rule(layer, [inputs.contiguous()], behind.contiguous())
        return {p: found[p] for p in trained}

    return samples


def lengths(samples: Tensor) -> Tensor:
    """Norms (n,) of samples (n, …): single precision within blocks, double precision over them.

    A sum over millions of squares in single precision is too small by 1e-3, and clipping would use
    a norm that is too small. Double precision throughout takes twenty times as long.
    """
    flat = samples.flatten(1)
    count = flat.shape[1] // BLOCK
    blocks = flat[:, : count * BLOCK].unflatten(1, (count, BLOCK))
    rest = flat[:, count * BLOCK :]
    parts = [
        torch.linalg.vector_norm(blocks, dim=2),
        torch.linalg.vector_norm(rest, dim=1, keepdim=True),
    ]
    norms: Tensor = torch.cat(parts, dim=1).double().norm(dim=1)
    return norms
