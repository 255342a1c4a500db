"""Device and precision of the computation."""

import contextlib
from contextlib import AbstractContextManager

import torch

from mediffusion_core.common.errors import UserError


def resolve_device(device: str) -> torch.device:
    """The device that `device=` names; `auto` takes a GPU where there is one.

    Raises:
        UserError: if the name is none of PyTorch's or the device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"setting device={device!r}: not available here; allowed: auto, cpu, cuda, cuda:N"
        ) from None
    return chosen


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast where it is asked for, or where `auto` finds hardware that gains by it."""
    wanted = precision == "bf16" or (precision == "auto" and _has_fast_bf16(device))
    if not wanted:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((text for text in file if text.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.split())
