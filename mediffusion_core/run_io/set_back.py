"""Sets a run back to an earlier checkpoint, and its later results aside."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import sync
from mediffusion_core.run_io.checkpoints import (
    Checkpoint,
    list_checkpoints,
    resumable_checkpoints,
)
from mediffusion_core.run_io.run_folder import JOINT_STAGE, RunFolder
from mediffusion_core.settings import Settings

SET_ASIDE = "set-aside"
_RESULTS = ("model", "summary.json", "report.html", "error.txt")


def set_back(folder: RunFolder, at: str, settings: Settings) -> Path:
    """Makes a checkpoint the newest one, so that the run continues from it.

    Everything that the run wrote after it is moved to a new folder below `set-aside`, with a copy
    of `metrics.jsonl`. The sites' folders, and the records of spent privacy, stay as they are.
    Where this is cut short, the run can continue from the checkpoint that is the newest then, and
    this can be done again.

    Args:
        folder: Of the run.
        at: Number of a joint round, or STAGE-ROUND.
        settings: Of the run.

    Returns:
        The new folder.

    Raises:
        UserError: if no checkpoint of that round is kept, or it is damaged.
    """
    checkpoint = _chosen(folder, at, settings)
    earlier = (folder.path / SET_ASIDE).glob("[0-9][0-9][0-9]-*")
    number = 1 + max((int(path.name[:3]) for path in earlier), default=0)
    aside = folder.path / SET_ASIDE / f"{number:03d}-back-to-{checkpoint.name}"
    aside.mkdir(parents=True)
    if folder.metrics.is_file():
        shutil.copyfile(folder.metrics, aside / folder.metrics.name)
        sync(aside / folder.metrics.name)
    for path in _later(folder, checkpoint):
        moved = aside / path.relative_to(folder.path)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
        sync(moved.parent)
        sync(path.parent)
    folder.rewrite(checkpoint.state["history"])
    return aside


def _chosen(folder: RunFolder, at: str, settings: Settings) -> Checkpoint:
    name = f"{JOINT_STAGE}-{at}" if at.isdigit() else at
    resumable = resumable_checkpoints(folder.checkpoints, settings)
    found = [one for one in resumable if one.name == name]
    if not found:
        names = ", ".join(one.name for one in resumable) or "none"
        raise UserError(
            f"--at {at}: {folder.path} keeps no checkpoint of that round; kept: {names}"
        )
    if damage := found[-1].damage():
        raise UserError(f"--at {at}: checkpoint {found[-1].folder.name} is damaged ({damage})")
    return found[-1]


def _later(folder: RunFolder, checkpoint: Checkpoint) -> Iterator[Path]:
    """Results from after a checkpoint; last the later checkpoints, the newest first.

    Pictures that are not of a single round belong to the newest, or to the selected one.
    """
    yield from (path for path in map(folder.path.joinpath, _RESULTS) if path.exists())
    last = checkpoint.round_number if checkpoint.stage == JOINT_STAGE else -1
    yield from sorted(folder.pictures.glob("*.*"))
    for path in sorted(folder.pictures.glob("rounds/*")):
        if int(path.name) > last:
            yield path
    for later in reversed(list_checkpoints(folder.checkpoints)):
        if later.number > checkpoint.number:
            yield later.folder
