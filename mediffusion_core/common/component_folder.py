"""A folder of weights: one safetensors file a component, and a `state.json`."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mediffusion_core.common.files import sync

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    number: int
    state: dict[str, Any]

    def load(self, component: str) -> StateDict:
        """The tensors of one component."""
        return dict(load_file(self.folder / f"{component}.safetensors"))

    def components(self) -> list[str]:
        """Names of the components it holds."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))


def write_folder(
    final: Path, components: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Writes components and `state.json` into a folder that appears whole or not at all."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(".*.new"):
        shutil.rmtree(leftover)  # of a process that was killed here
    temporary = final.with_name(f".{final.name}.new")
    temporary.mkdir()
    for name, tensors in components.items():
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(contiguous, temporary / f"{name}.safetensors")
    (temporary / "state.json").write_text(json.dumps(state, indent=2))
    for path in [*temporary.iterdir(), temporary]:
        sync(path)
    replaced = final.with_name(f".{final.name}.old")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def read_folder(folder: Path) -> Checkpoint:
    """Opens a folder written by `write_folder`."""
    return Checkpoint(folder, 0, json.loads((folder / "state.json").read_text()))
