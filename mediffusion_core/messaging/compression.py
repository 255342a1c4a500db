"""Weights and moments in fewer bytes, for the messages of training (`federation.compression`).

Q rounds. With w the server's weights, which themselves are never rounded:

    to each site     w̃ = Q(w)
    site             trains from w̃ to w', and sends the change  d = Q(w' - w̃)
    server           takes w + d for the site's weights

What rounding adds on the way out is gone with the round, and what it adds on the way back is
relative to the change, not to the weights (as in QSGD, arXiv 1610.02132). A site keeps nothing, and
nothing is drawn at random: a continued run equals an uninterrupted one. Where weights are noised
first, for privacy, rounding is post-processing and costs nothing.

`bf16` halves the bytes: an error of at most 2⁻⁸ of each number. `int8` quarters them: of a row of
weights (one of the first dimension) at most 1/254 of its largest; of Adam's moments, whose sizes
span decades within a row, 2⁻⁴ of each number, by 8-bit floats (E4M3, arXiv 2209.05433). Second
moments travel as their roots. What has no rows, biases and norms, travels as it is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mediffusion_core.messaging.moment_names import MEAN, SQUARE
from mediffusion_core.messaging.protocol import COMPRESSED, TRAINING
from mediffusion_core.settings import Compression

StateDict = Mapping[str, Tensor]

SCALE = ":scale"
"""After a tensor's name: what its rows are multiplied with, (rows,)."""
FLOAT8 = torch.float8_e4m3fn
EIGHT_BITS = (FLOAT8, torch.int8)
SMALLEST = 2.0**-9
"""The smallest positive number of `FLOAT8`."""


def method_for(kind: str, compression: Compression) -> Compression:
    """How a run's messages of one kind travel."""
    return compression if kind in TRAINING else "none"


def method_of(component: str, method: Compression) -> Compression:
    """How one component of a message travels that itself goes by a method."""
    return method if component in COMPRESSED else "none"


def outward(state: StateDict, method: Compression) -> StateDict:
    """What the server sends in the place of a component.

    No second moment becomes zero: divided by its root, a first moment that is none would take a
    weight anywhere.
    """
    return state if method == "none" else _coded(_roots(state), method, positive=True)


def arrived(travelling: StateDict, method: Compression) -> StateDict:
    """The component that a site trains, of what `outward` made."""
    return travelling if method == "none" else _squares(_decoded(travelling))


def change(after: StateDict, before: StateDict, method: Compression) -> StateDict:
    """What a site sends back in the place of a component.

    Args:
        after: The component once it was trained.
        before: The same as `arrived` gave it.
        method: Of the run.
    """
    if method == "none":
        return after
    ours, theirs = _roots(after), _roots(before)
    return _coded({name: value.cpu() - theirs[name] for name, value in ours.items()}, method)


def changed(before: StateDict, travelling: StateDict, method: Compression) -> StateDict:
    """A site's component, of what `change` made and the server's own.

    Raises:
        ValueError: if names or shapes are not those of the server's own, or scales are missing.
    """
    if method == "none":
        return travelling
    decoded, ours = _decoded(travelling), _roots(before)
    if {n: v.shape for n, v in decoded.items()} != {n: v.shape for n, v in ours.items()}:
        raise ValueError("a change of other weights")
    moved = {name: value + decoded[name] for name, value in ours.items()}
    # Not clamp, which would take what is no number for zero.
    return _squares({n: torch.relu(v) if n.endswith(SQUARE) else v for n, v in moved.items()})


def layout(state: StateDict, method: Compression) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, shapes and types of what `change` makes of a component."""
    found = {}
    for name, value in state.items():
        code = _code(name, value, method)
        found[name] = (value.shape, code or value.dtype)
        if code in EIGHT_BITS:
            found[name + SCALE] = (value.shape[:1], torch.float32)
    return found


def _code(name: str, value: Tensor, method: Compression) -> torch.dtype | None:
    """The type that a tensor's numbers are coded in; None where it travels as it is."""
    if method == "none" or value.dtype != torch.float32 or value.dim() < 2:
        return None
    if method == "bf16":
        return torch.bfloat16
    return FLOAT8 if name.endswith((MEAN, SQUARE)) else torch.int8


def _roots(state: StateDict) -> dict[str, Tensor]:
    return {n: value.sqrt() if n.endswith(SQUARE) else value for n, value in state.items()}


def _squares(state: StateDict) -> dict[str, Tensor]:
    return {n: value.square() if n.endswith(SQUARE) else value for n, value in state.items()}


def _coded(state: StateDict, method: Compression, positive: bool = False) -> dict[str, Tensor]:
    travelling = {}
    for name, value in state.items():
        code = _code(name, value, method)
        if code in EIGHT_BITS:
            least = SMALLEST if positive and name.endswith(SQUARE) else None
            travelling[name], travelling[name + SCALE] = _eight_bits(value, code, least)
        else:
            travelling[name] = value if code is None else value.to(code)
    return travelling


def _eight_bits(value: Tensor, dtype: torch.dtype, least: float | None) -> tuple[Tensor, Tensor]:
    """Codes, shaped as the value, and the scale of each row; a row that is no number stays none."""
    rows = value.flatten(1)  # (rows, n)
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    smallest = torch.finfo(torch.float32).tiny
    scale = (rows.abs().amax(dim=1) / largest).clamp(min=smallest)  # (rows,)
    codes = rows / scale[:, None]
    if dtype == torch.int8:
        codes = codes.round()
    if least is not None:
        codes = codes.clamp(min=least)
    return codes.to(dtype).reshape(value.shape), scale


def _decoded(travelling: StateDict) -> dict[str, Tensor]:
    state = {}
    for name, value in travelling.items():
        if name.endswith(SCALE):
            continue
        scale = travelling.get(name + SCALE)
        if scale is not None:
            if scale.shape != value.shape[:1]:
                raise ValueError(f"{name} has {len(value)} rows and another number of scales")
            value = (value.float().flatten(1) * scale[:, None]).reshape(value.shape)
        state[name] = value.float() if value.dtype == torch.bfloat16 else value
    return state
