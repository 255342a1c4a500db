"""Checkpoints: the contract between a run and its continuation.

A checkpoint is a folder with one safetensors file a component and a `state.json`. It is written
under a temporary name, flushed to disk and renamed, so a folder with a final name is complete.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mediffusion_core.common.component_folder import Checkpoint, write_folder

_NAME = re.compile(r"(?P<number>\d{6})-(?P<stage>[a-z]+)-(?P<round>\d+)")


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
