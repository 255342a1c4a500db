"""Where a run continues: its state and its records, after kills and with damaged files."""

import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.power_loss import LOSSES, Loss, cut_short
from safetensors.torch import load_file

from configs.compose import compose
from mediffusion_core.common.component_folder import write_folder
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.protocol import AUTOENCODING, HEAD, JOINT, UNET
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.run_io.set_back import set_back
from mediffusion_core.settings import Settings
from server.checkpoints import restore_state, save_state, selected_state
from server.selection import Evaluated, Selection
from server.state import RunState


@pytest.fixture(scope="module")
def settings(tiny: tuple[str, ...]) -> Settings:
    return compose("config", tiny)


def state_after(rounds: int) -> RunState:
    """Every array holds the number of the round."""
    arrays = {name: {"w": torch.full((2,), float(rounds))} for name in (*AUTOENCODING, *JOINT)}
    averages = {name: arrays[name] for name in (UNET, HEAD)}
    return RunState(weights=dict(arrays), averages=averages, joint_rounds=rounds)


def run_rounds(
    folder: RunFolder, settings: Settings, first: int, last: int, selected: Sequence[int] = ()
) -> None:
    """Rounds of a run that trains nothing, recorded and saved as the server does it."""
    for number in range(first, last + 1):
        state = state_after(number)
        state.saved = number - 1
        if earlier := [one for one in selected if one <= number]:
            state.selection = Selection(earlier[-1], Evaluated(earlier[-1], 0.5, []))
        folder.record(stage="joint", round=number, loss=1 / number)
        save_state(state, folder, settings, "joint")


def write_newest(folder: RunFolder, state: Mapping[str, Any]) -> None:
    """Gives the newest checkpoint another state, with checksums that fit."""
    newest = list_checkpoints(folder.checkpoints)[-1].folder
    parts = {path.stem: load_file(path) for path in newest.glob("*.safetensors")}
    write_folder(newest, parts, state)


def continued(folder: RunFolder, settings: Settings) -> int:
    """The round after which the run goes on; its arrays and records are those of that round."""
    state = restore_state(folder, settings)
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
def folder(tmp_path: Path, settings: Settings) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    run_rounds(made, settings, 1, 3)
    return made


def flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def test_a_run_goes_on_from_its_newest_checkpoint(
    folder: RunFolder, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    folder.record(stage="joint", round=4, loss=0.25)  # killed before its checkpoint
    assert continued(folder, settings) == 3
    assert caplog.records == []


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_not_damaged(
    folder: RunFolder, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    flip(list_checkpoints(folder.checkpoints)[-1].folder / "unet.safetensors", random.Random(0))
    assert continued(folder, settings) == 2
    [line] = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert line == (
        "damaged: checkpoint 000003-joint-3 (unet.safetensors is not as it was written); the run "
        "continues from checkpoint 000002-joint-2, after joint round 2"
    )
    run_rounds(folder, settings, 3, 3)  # in the place of the damaged one
    caplog.clear()
    assert continued(folder, settings) == 3 and caplog.records == []


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(
    folder: RunFolder, settings: Settings
) -> None:
    metrics = folder.metrics.read_text()
    for checkpoint in list_checkpoints(folder.checkpoints):
        (checkpoint.folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"^all checkpoints in .* are damaged: .*joint-3.*joint-2"):
        restore_state(folder, settings)
    assert folder.metrics.read_text() == metrics


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"settings_hash": "two\nlines"},
        {"settings_hash": "HASH"},
        {"settings_hash": "HASH", "joint_rounds": 1, "selection": 3},
    ],
)
def test_a_checkpoint_of_another_program_is_refused(
    folder: RunFolder, settings: Settings, state: dict[str, object]
) -> None:
    metrics = folder.metrics.read_text()
    if state.get("settings_hash") == "HASH":
        state = {**state, "settings_hash": settings.fingerprint()}
    write_newest(folder, state)
    with pytest.raises(UserError, match=r"other settings|no state of this program") as error:
        restore_state(folder, settings)
    assert "\n" not in str(error.value)
    assert folder.metrics.read_text() == metrics


def test_a_count_of_noised_means_in_place_of_their_tip_is_of_an_earlier_version(
    folder: RunFolder, settings: Settings
) -> None:
    newest = list_checkpoints(folder.checkpoints)[-1]
    write_newest(folder, {**newest.state, "noised_means": 2})
    with pytest.raises(UserError, match="finish the run with the version that began it"):
        restore_state(folder, settings)


def test_a_checkpoint_of_an_earlier_version_without_noised_means_is_restored(
    folder: RunFolder, settings: Settings
) -> None:
    newest = list_checkpoints(folder.checkpoints)[-1]
    write_newest(folder, {**newest.state, "noised_means": 0})
    restored = restore_state(folder, settings)
    assert restored is not None and restored.noised_means is None


def test_a_run_with_other_settings_is_refused(folder: RunFolder, tiny: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="written under other settings"):
        restore_state(folder, compose("config", [*tiny, "seed=2"]))


@pytest.mark.parametrize("draw", [random.Random(seed) for seed in range(5)])
def test_damaged_records_are_mended_from_the_checkpoint(
    folder: RunFolder, settings: Settings, draw: random.Random
) -> None:
    if draw.random() < 0.5:
        flip(folder.metrics, draw)
    else:
        folder.metrics.write_text(folder.metrics.read_text()[: draw.randrange(30)])
    assert continued(folder, settings) == 3


@pytest.mark.parametrize("loss", LOSSES)
def test_cut_short_at_any_moment_a_run_goes_on_with_the_old_or_the_new_round(
    folder: RunFolder, settings: Settings, tmp_path: Path, loss: Loss
) -> None:
    found: list[Any] = []
    for moment in count():
        copy = RunFolder(tmp_path / "copies" / str(moment))
        shutil.copytree(folder.path, copy.path)
        cut = cut_short(moment, partial(run_rounds, copy, settings, 4, 4), copy.path, loss)
        found.append(continued(copy, settings))
        shutil.rmtree(copy.path)
        if not cut:
            break
    assert found == sorted(found) and set(found) == {3, 4}
    assert len(found) > 30


# Which are kept


def kept(folder: RunFolder) -> list[str]:
    return [one.name for one in list_checkpoints(folder.checkpoints)]


@pytest.mark.parametrize(
    ("keep_last", "selected", "expected"),
    [
        (1, [], [9]),
        (2, [], [8, 9]),
        (4, [], [6, 7, 8, 9]),
        (2, [3], [3, 8, 9]),
        (2, [3, 9], [3, 8, 9]),  # 8 was saved when 3 was selected
        (2, [3, 8], [8, 9]),
        (1, [3, 9], [9]),
        (3, [1, 4, 8], [4, 7, 8, 9]),
    ],
)
def test_the_newest_are_kept_and_those_of_their_selected_rounds(
    tmp_path: Path, tiny: tuple[str, ...], keep_last: int, selected: list[int], expected: list[int]
) -> None:
    folder = RunFolder(tmp_path)
    settings = compose("config", [*tiny, f"run.keep_last={keep_last}"])
    run_rounds(folder, settings, 1, 9, selected)
    assert kept(folder) == [f"joint-{number}" for number in expected]
    for checkpoint in list_checkpoints(folder.checkpoints)[-keep_last:]:
        if selection := checkpoint.state["selection"]:
            state = selected_state(folder, Selection(selection["kept"], Evaluated(1, 0.5, [])))
            assert state is not None
            assert float(state.weights[UNET]["w"][0]) == selection["kept"]


def test_a_damaged_checkpoint_does_not_end_the_run_that_prunes(
    folder: RunFolder, settings: Settings
) -> None:
    (list_checkpoints(folder.checkpoints)[-1].folder / "state.json").write_text("{")
    run_rounds(folder, settings, 4, 4)
    assert kept(folder) == ["joint-3", "joint-4"]


# Setting back


@pytest.fixture
def long(tmp_path: Path, tiny: tuple[str, ...]) -> tuple[RunFolder, Settings]:
    """Nine rounds, the last three and the selected fourth one kept, with results of all kinds."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    settings = compose("config", [*tiny, "run.keep_last=3"])
    run_rounds(folder, settings, 1, 9, [4])
    for number in (2, 4, 6, 8):
        (folder.pictures / "rounds" / f"{number:04d}").mkdir(parents=True)
    for name in (
        "summary.json",
        "report.html",
        "model/head",
        "pictures/curves.png",
        "pictures/counterfactual.json",
        "sites/latents",
    ):
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("of the end")
    return folder, settings


def test_a_run_that_is_set_back_goes_on_from_there(long: tuple[RunFolder, Settings]) -> None:
    folder, settings = long
    whole = folder.metrics.read_text()
    aside = set_back(folder, "4", settings)
    assert continued(folder, settings) == 4
    assert kept(folder) == ["joint-4"]
    left = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}
    assert not left & {"summary.json", "report.html", "model", "pictures/curves.png"}
    assert "pictures/counterfactual.json" not in left
    assert "sites/latents" in left
    assert sorted(path.name for path in folder.pictures.glob("rounds/*"))[-1] == "0004"
    assert (aside / "metrics.jsonl").read_text() == whole
    assert [path.name for path in sorted(aside.glob("checkpoints/*"))] == [
        "000007-joint-7",
        "000008-joint-8",
        "000009-joint-9",
    ]
    assert (aside / "model" / "head").exists() and (aside / "pictures" / "curves.png").exists()
    assert sorted(path.name for path in aside.glob("pictures/rounds/*"))[0] == "0006"


@pytest.mark.parametrize("at", ["3", "joint-12", "autoencoder-1", "x", "-1"])
def test_a_round_that_is_not_kept_is_refused_with_those_that_are(
    long: tuple[RunFolder, Settings], at: str
) -> None:
    folder, settings = long
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(
        UserError, match=rf"^--at {at}: .*; kept: joint-4, joint-7, joint-8, joint-9$"
    ):
        set_back(folder, at, settings)
    assert sorted(folder.path.rglob("*")) == before


def test_a_damaged_round_is_refused(long: tuple[RunFolder, Settings]) -> None:
    folder, settings = long
    flip(folder.checkpoints / "000007-joint-7" / "head.safetensors", random.Random(0))
    with pytest.raises(UserError, match=r"^--at joint-7: .* is damaged \(head\.safetensors is not"):
        set_back(folder, "joint-7", settings)


def test_a_run_goes_back_no_further_than_its_sites_can(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    """They keep their own normalisation of the newest rounds alone."""
    folder = RunFolder(tmp_path)
    settings = compose("config", [*tiny, "federation.local_normalisation=true"])
    run_rounds(folder, settings, 1, 9, [4])
    assert kept(folder) == ["joint-4", "joint-8", "joint-9"]
    with pytest.raises(UserError, match=r"kept: joint-8, joint-9$"):
        set_back(folder, "4", settings)
    for checkpoint in list_checkpoints(folder.checkpoints)[-2:]:
        flip(checkpoint.folder / "head.safetensors", random.Random(0))
    with pytest.raises(UserError, match=r"all checkpoints .* are damaged"):
        restore_state(folder, settings)


@pytest.mark.parametrize("loss", LOSSES)
def test_cut_short_at_any_moment_a_run_goes_on_and_can_be_set_back_again(
    long: tuple[RunFolder, Settings], tmp_path: Path, loss: Loss
) -> None:
    folder, settings = long
    for moment in count(step=2):
        copy = RunFolder(tmp_path / "copies" / str(moment))
        shutil.copytree(folder.path, copy.path)
        cut = cut_short(moment, partial(set_back, copy, "7", settings), copy.path, loss)
        assert continued(copy, settings) in (7, 8, 9)
        set_back(copy, "7", settings)
        assert continued(copy, settings) == 7 and kept(copy) == ["joint-4", "joint-7"]
        shutil.rmtree(copy.path)
        if not cut:
            break
