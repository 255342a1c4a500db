"""Checkpoints: the contract between a run and its continuation.

A checkpoint is a folder with one safetensors file a component and a `state.json`. It is written
under a temporary name, flushed to disk and renamed, so a folder with a final name is complete.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mediffusion_core.durable import sync

StateDict = dict[str, Tensor]

_NAME = re.compile(r"(?P<number>\d{6})-(?P<stage>[a-z]+)-(?P<round>\d+)")


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


def save_checkpoint(
    root: Path,
    number: int,
    stage: str,
    round_number: int,
    components: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Checkpoint:
    """Writes a checkpoint atomically.

    Args:
        root: Folder that holds all of a run's checkpoints.
        number: Counts checkpoints upwards; the largest is the newest.
        stage: Name of the stage that has just run a round.
        round_number: That round.
        components: State dict of each component.
        state: JSON values: everything else that a continuation needs.
    """
    final = root / f"{number:06d}-{stage}-{round_number}"
    whole = {"stage": stage, "round": round_number, **state}
    write_folder(final, components, whole)
    return Checkpoint(final, number, whole)


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


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """All complete checkpoints, oldest first."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        match = _NAME.fullmatch(folder.name)
        if match and (folder / "state.json").is_file():
            state = json.loads((folder / "state.json").read_text())
            found.append(Checkpoint(folder, int(match["number"]), state))
    return found


def prune_checkpoints(root: Path, keep_last: int) -> None:
    """Removes all but the newest `keep_last` checkpoints."""
    checkpoints = list_checkpoints(root)
    for checkpoint in checkpoints[: max(0, len(checkpoints) - keep_last)]:
        shutil.rmtree(checkpoint.folder)
