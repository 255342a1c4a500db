"""Compression of weights and moments in training messages (`federation.compression`).

Q rounds to fewer bits. The server's weights w are never rounded:

    server to site   w̃ = Q(w)
    site             trains from w̃ to w', and sends the change  d = Q(w' - w̃)
    server           uses w + d as the site's weights

The rounding error of w̃ does not accumulate over rounds. The rounding error of d is relative to the
change, not to the weights (as in QSGD, arXiv 1610.02132). Compression has neither state nor random
numbers, so a continued run equals an uninterrupted one. With differential privacy, rounding is
post-processing and has no privacy cost.

`bf16` halves the bytes, with an error of at most 2⁻⁸ of each number. `int8` quarters the bytes. The
error of weights is at most 1/254 of the largest weight in the same row (first dimension). Adam's
moments span decades within a row, so they become 8-bit floats with an error of 2⁻⁴ of each number
(E4M3, arXiv 2209.05433). Second moments are sent as their square roots. Tensors without rows, such
as biases and norms, are sent whole.

With `none` weights are sent whole, and Adam's moments as with `bf16`: that changes the length of a
step by less than 1 %.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mediffusion_core.messaging.moment_names import MEAN, SQUARE
from mediffusion_core.messaging.protocol import COMPRESSED, MOMENTS, TRAINING
from mediffusion_core.settings import Compression

StateDict = Mapping[str, Tensor]

SCALE = ":scale"
"""Ending of the name of a tensor's row scales, (rows,)."""
FLOAT8 = torch.float8_e4m3fn
EIGHT_BITS = (FLOAT8, torch.int8)
SMALLEST = 2.0**-9
"""The smallest positive number of `FLOAT8`."""


def message_compression(kind: str, compression: Compression) -> Compression:
    """The compression of a kind of message."""
    return compression if kind in TRAINING else "none"


def component_compression(component: str, method: Compression) -> Compression:
    """The compression of a component in a message with the given compression."""
    if method == "none" and component in MOMENTS.values():
        return "bf16"
    return method if component in COMPRESSED else "none"


def compress_weights(state: StateDict, method: Compression) -> StateDict:
    """Compresses a component that the server sends.

    Second moments stay above 0: Adam divides by their roots, and would take steps without bound.
    """
    return state if method == "none" else _coded(_roots(state), method, positive=True)


def decompress_weights(travelling: StateDict, method: Compression) -> StateDict:
    """Decompresses `compress_weights`: the component that a site trains.

    Raises:
        ValueError: if a tensor is of another form than `compress_weights` makes.
    """
    return travelling if method == "none" else _squares(_decoded(travelling))


def compress_change(after: StateDict, before: StateDict, method: Compression) -> StateDict:
    """Compresses the change of a component that a site sends back.

    Args:
        after: The component after training.
        before: The component before training, from `decompress_weights`.
        method: Of the run.
    """
    if method == "none":
        return after
    ours, theirs = _roots(after), _roots(before)
    return _coded({name: value.cpu() - theirs[name] for name, value in ours.items()}, method)


def apply_change(before: StateDict, travelling: StateDict, method: Compression) -> StateDict:
    """Decompresses `compress_change`: adds it to the server's component.

    Raises:
        ValueError: if names, shapes or types differ from the server's, or scales are missing.
    """
    if method == "none":
        return travelling
    decoded, ours = _decoded(travelling), _roots(before)
    if _forms(decoded) != _forms(ours):
        raise ValueError("a change of other weights")
    moved = {name: value + decoded[name] for name, value in ours.items()}
    # relu keeps NaN, which the reply contract then refuses.
    return _squares({n: torch.relu(v) if n.endswith(SQUARE) else v for n, v in moved.items()})


def layout(state: StateDict, method: Compression) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, shapes and types of the tensors that `compress_change` makes of a component."""
    found = {}
    for name, value in state.items():
        code = _code(name, value, method)
        found[name] = (value.shape, code or value.dtype)
        if code in EIGHT_BITS:
            found[name + SCALE] = (value.shape[:1], torch.float32)
    return found


def _forms(state: StateDict) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


def _code(name: str, value: Tensor, method: Compression) -> torch.dtype | None:
    """The type of a tensor's codes; None if it is sent unchanged."""
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
    """Codes in the value's shape, and the scale of each row (rows,); rows with NaN stay NaN."""
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
        if (value.dtype in EIGHT_BITS) != (scale is not None):
            raise ValueError(f"{name} has codes without scales, or scales without codes")
        if scale is not None:
            fits = value.dim() > 1 and scale.shape == value.shape[:1]
            if not fits or scale.dtype != torch.float32:
                raise ValueError(f"{name} has other scales than one for each row")
            value = (value.float().flatten(1) * scale[:, None]).reshape(value.shape)
        state[name] = value.float() if value.dtype == torch.bfloat16 else value
        if name.endswith(SQUARE) and state[name].dtype != torch.float32:
            raise ValueError(f"{name} is of type {value.dtype}")
    return state
