"""A folder of weights: one safetensors file a component, a `state.json`, and checksums of both.

`SHA256SUMS` has the form of the program sha256sum, so `sha256sum --check SHA256SUMS` checks a
folder, too. It is written after all other files are on the disk.

A file may be a link, wherever it leads: caches of models and data versions are made of links
(docs/decisions/0022-links-in-models.md). Pipes and devices, which never end, are refused.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import sync, unfinished

StateDict = dict[str, Tensor]

STATE, SUMS = "state.json", "SHA256SUMS"


@dataclass(frozen=True)
class ComponentFolder:
    """Weights and their state, as `write_folder` wrote them."""

    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """The content of `state.json`.

        Raises:
            UserError: if it cannot be read, or is no JSON object.
        """
        path = self.folder / STATE
        try:
            _refuse_endless(path)
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__})") from None
        if not isinstance(state, dict):
            raise UserError(f"{path} is no JSON object")
        return state

    def load(self, component: str) -> StateDict:
        """The tensors of one component.

        Raises:
            UserError: if its file cannot be read, or is no safetensors file.
        """
        path = self.folder / f"{component}.safetensors"
        try:
            _refuse_endless(path)
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__})") from None

    def components(self) -> list[str]:
        """Names of the components it holds."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def damage(self) -> str | None:
        """Reads every file and names the first difference to the written checksums, else None."""
        try:
            _refuse_endless(self.folder / SUMS)
            written = (self.folder / SUMS).read_bytes()
            found = _sums(self.folder)
        except FileNotFoundError:
            return f"{SUMS} is missing"
        except OSError as error:
            return f"{Path(error.filename or self.folder).name} cannot be read ({error.strerror})"
        return None if written == found else _difference(written, found)


def write_folder(
    final: Path, components: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Writes components and `state.json` into a folder that appears whole or not at all."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(final.parent)
    temporary = unfinished(final)
    temporary.mkdir()
    for name, tensors in components.items():
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(contiguous, temporary / f"{name}.safetensors")
    (temporary / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    sums = _sums(temporary)
    for path in temporary.iterdir():
        sync(path)
    (temporary / SUMS).write_bytes(sums)
    for path in (temporary / SUMS, temporary):
        sync(path)
    replaced = _hide(final) if final.exists() else None
    temporary.rename(final)
    sync(final.parent)
    if replaced:
        shutil.rmtree(replaced)


def remove_folder(folder: Path) -> None:
    """Removes a folder; killed on the way, it leaves the whole folder, or none of that name."""
    shutil.rmtree(_hide(folder))


def read_folder(folder: Path) -> ComponentFolder:
    """Opens a folder written by `write_folder`; one from before there were checksums as it is.

    Raises:
        UserError: if a file is not as it was written.
    """
    found = ComponentFolder(folder)
    if (folder / SUMS).exists() and (damage := found.damage()):
        raise UserError(f"{folder} is damaged: {damage}")
    return found


def _sums(folder: Path) -> bytes:
    """A line for every file: its SHA-256 and its name."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != SUMS:
            _refuse_endless(path)
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines).encode(errors="surrogateescape")


def _refuse_endless(path: Path) -> None:
    """Raises OSError for anything but a file or folder, such as a pipe or device."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))


def _difference(written: bytes, found: bytes) -> str:
    """The first file whose checksum is not the written one."""
    before, now = _by_name(written), _by_name(found)
    differing = (name for name in sorted(before) if before[name] != now.get(name))
    name = next(differing, SUMS)
    return f"{name} is {'not as it was written' if name in {*now, SUMS} else 'missing'}"


def _by_name(sums: bytes) -> dict[str, str]:
    lines = (line.partition("  ") for line in sums.decode(errors="replace").split("\n"))
    return {name: digest for digest, _, name in lines if name}


def _hide(folder: Path) -> Path:
    """Renames a folder, so that nothing reads it any more."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    return folder.rename(hidden)


def _clear_leftovers(parent: Path) -> None:
    """Removes what processes left that were killed while they wrote or removed a folder."""
    for leftover in (*parent.glob(".*.new"), *parent.glob(".*.old")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
