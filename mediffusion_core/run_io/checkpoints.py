"""Checkpoints: the contract between a run and its continuation.

A checkpoint is a folder with one safetensors file a component, a `state.json` and checksums of both
(`mediffusion_core.common.component_folder`). It is written under a temporary name, flushed to disk
and renamed, so a folder with a final name was complete. The checksums show later damage.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mediffusion_core.common.component_folder import ComponentFolder, remove_folder, write_folder
from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import Settings

_NAME = re.compile(r"(?P<number>\d{6})-(?P<stage>[a-z]+)-(?P<round>\d+)")


@dataclass(frozen=True)
class Checkpoint(ComponentFolder):
    """A checkpoint on disk, whose files may be damaged.

    Attributes:
        number: Counts checkpoints upwards; the largest is the newest.
        stage: Name of the stage that had just run a round.
        round_number: That round.
    """

    number: int
    stage: str
    round_number: int

    @property
    def name(self) -> str:
        """Stage and round, for example `joint-3`."""
        return f"{self.stage}-{self.round_number}"

    def remove(self) -> None:
        """Removes its folder."""
        remove_folder(self.folder)


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
    return Checkpoint(final, number, stage, round_number)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """All checkpoints, oldest first; none of their files is read."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if match := _NAME.fullmatch(folder.name):
            number, stage, round_number = match.groups()
            found.append(Checkpoint(folder, int(number), stage, int(round_number)))
    return found


def resumable_checkpoints(root: Path, settings: Settings) -> list[Checkpoint]:
    """The checkpoints from which a run can continue, oldest first.

    All, or with `federation.local_normalisation` the newest alone: the sites keep their own values
    of no more rounds.
    """
    kept = list_checkpoints(root)
    return kept[-settings.run.keep_last :] if settings.federation.local_normalisation else kept


def newest_checkpoint(
    checkpoints: Sequence[Checkpoint], report: Callable[[str], None]
) -> Checkpoint | None:
    """The newest checkpoint whose files are as they were written; None where there is none at all.

    Args:
        checkpoints: Of one run, oldest first.
        report: Takes one line, which names the damaged checkpoints that are newer.

    Raises:
        UserError: if all are damaged.
    """
    damaged: list[str] = []
    for checkpoint in reversed(checkpoints):
        damage = checkpoint.damage()
        if damage is None:
            if damaged:
                report(
                    f"damaged: {', '.join(damaged)}; the run continues from checkpoint "
                    f"{checkpoint.folder.name}, after {checkpoint.stage} round "
                    f"{checkpoint.round_number}"
                )
            return checkpoint
        damaged.append(f"checkpoint {checkpoint.folder.name} ({damage})")
    if damaged:
        raise UserError(
            f"all checkpoints in {checkpoints[0].folder.parent} are damaged: {', '.join(damaged)}; "
            "start the run anew in another run.folder"
        )
    return None
