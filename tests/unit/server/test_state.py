"""Where a run continues: its state and its records, after kills and with damaged files."""

import logging
import random
import shutil
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.power_loss import LOSSES, Loss, cut_short
from safetensors.torch import load_file

from mediffusion_core.common.component_folder import write_folder
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.protocol import AUTOENCODING, HEAD, JOINT, UNET
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.run_io.run_folder import RunFolder
from server.state import RunState, restore_state

HASH = "0123456789abcdef"


def state_after(rounds: int) -> RunState:
    """Every array holds the number of the round."""
    arrays = {name: {"w": torch.full((2,), float(rounds))} for name in (*AUTOENCODING, *JOINT)}
    averages = {name: arrays[name] for name in (UNET, HEAD)}
    return RunState(weights=dict(arrays), averages=averages, joint_rounds=rounds)


def run_rounds(folder: RunFolder, first: int, last: int) -> None:
    """Rounds of a run that trains nothing, recorded and saved as the server does it."""
    for number in range(first, last + 1):
        state = state_after(number)
        state.saved = number - 1
        folder.record(stage="joint", round=number, loss=1 / number)
        state.save(folder, HASH, "joint")


def continued(folder: RunFolder) -> int:
    """The round after which the run goes on; its arrays and records are those of that round."""
    state = restore_state(folder, HASH)
    if state is None:
        assert folder.history() == []
        return 0
    rounds = state.joint_rounds
    for component in state.weights.values():
        assert torch.equal(component["w"], torch.full((2,), float(rounds)))
    assert folder.history() == [
        {"stage": "joint", "round": number, "loss": 1 / number} for number in range(1, rounds + 1)
    ]
    assert state.saved == rounds
    return rounds


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    run_rounds(made, 1, 3)
    return made


def flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def test_a_run_goes_on_from_its_newest_checkpoint(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.record(stage="joint", round=4, loss=0.25)  # killed before its checkpoint
    assert continued(folder) == 3
    assert caplog.records == []


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_not_damaged(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    flip(list_checkpoints(folder.checkpoints)[-1].folder / "unet.safetensors", random.Random(0))
    assert continued(folder) == 2
    [line] = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert line == (
        "damaged: checkpoint 000003-joint-3 (unet.safetensors is not as it was written); the run "
        "continues from checkpoint 000002-joint-2, after joint round 2"
    )
    run_rounds(folder, 3, 3)  # in the place of the damaged one
    caplog.clear()
    assert continued(folder) == 3 and caplog.records == []


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(folder: RunFolder) -> None:
    metrics = folder.metrics.read_text()
    for checkpoint in list_checkpoints(folder.checkpoints):
        (checkpoint.folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"^all checkpoints in .* are damaged: .*joint-3.*joint-2"):
        restore_state(folder, HASH)
    assert folder.metrics.read_text() == metrics


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"settings_hash": "two\nlines"},
        {"settings_hash": HASH},
        {"settings_hash": HASH, "joint_rounds": 1, "selection": 3},
    ],
)
def test_a_checkpoint_of_another_program_is_refused(
    folder: RunFolder, state: dict[str, object]
) -> None:
    metrics = folder.metrics.read_text()
    newest = list_checkpoints(folder.checkpoints)[-1].folder
    parts = {path.stem: load_file(path) for path in newest.glob("*.safetensors")}
    write_folder(newest, parts, state)
    with pytest.raises(UserError, match=r"other settings|no state of this program") as error:
        restore_state(folder, HASH)
    assert "\n" not in str(error.value)
    assert folder.metrics.read_text() == metrics


def test_a_run_with_other_settings_is_refused(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="written under other settings"):
        restore_state(folder, HASH[::-1])


@pytest.mark.parametrize("draw", [random.Random(seed) for seed in range(5)])
def test_damaged_records_are_mended_from_the_checkpoint(
    folder: RunFolder, draw: random.Random
) -> None:
    if draw.random() < 0.5:
        flip(folder.metrics, draw)
    else:
        folder.metrics.write_text(folder.metrics.read_text()[: draw.randrange(30)])
    assert continued(folder) == 3


@pytest.mark.parametrize("loss", LOSSES)
def test_cut_short_at_any_moment_a_run_goes_on_with_the_old_or_the_new_round(
    folder: RunFolder, tmp_path: Path, loss: Loss
) -> None:
    found: list[Any] = []
    for moment in count():
        copy = RunFolder(tmp_path / "copies" / str(moment))
        shutil.copytree(folder.path, copy.path)
        cut = cut_short(moment, partial(run_rounds, copy, 4, 4), copy.path, loss)
        found.append(continued(copy))
        shutil.rmtree(copy.path)
        if not cut:
            break
    assert found == sorted(found) and set(found) == {3, 4}
    assert len(found) > 30
