"""Tensors in one safetensors file, with the checksum of each in the file's metadata."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import replacing

_SUM = "sha256 "
"""Before a tensor's name, in the metadata."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Writes tensors and notes atomically; they are on the disk when this returns."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    sums = {_SUM + name: _sum(value) for name, value in contiguous.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, {**sums, **(notes or {})})


def load_tensors(
    path: Path, names: Collection[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and notes of a file.

    Args:
        path: Of the file.
        names: Of the tensors to read; all by default.

    Raises:
        UserError: if the file is missing, or a tensor is not as it was written.
    """
    try:
        with safe_open(path, "pt") as file:
            notes: dict[str, str] = file.metadata() or {}
            found = [name for name in file.keys() if _asked(name, names)]  # noqa: SIM118 (no dict)
            tensors = {name: file.get_tensor(name) for name in found}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    written = {
        name.removeprefix(_SUM): notes.pop(name) for name in list(notes) if name.startswith(_SUM)
    }
    expected = {name: digest for name, digest in written.items() if _asked(name, names)}
    if {name: _sum(value) for name, value in tensors.items()} != expected:
        raise UserError(f"{path} is damaged: its tensors are not as they were written")
    return tensors, notes


def _asked(name: str, names: Collection[str] | None) -> bool:
    return names is None or name in names


def _sum(tensor: Tensor) -> str:
    """SHA-256 of type, shape and content."""
    sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
