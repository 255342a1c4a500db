"""The files of a run, and their state after the process was killed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.untrained import untrained_model

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.run_folder import RunFolder, run_path, write_json
from mediffusion_core.settings import RunSettings, Settings

CLASSES = ("Effusion", "Mass")


def trained(settings: Settings, multi_label: bool = True) -> TrainedModel:
    model = untrained_model(settings, CLASSES, multi_label)
    model.codec.mean.fill_(0.5)
    return model


@pytest.fixture
def settings(tiny: tuple[str, ...]) -> Settings:
    return compose("config", tiny)


# Run folder


def test_records_are_lines_and_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record(stage="joint", round=1, loss=float("nan"), sites={"a": [1.0, float("inf")]})
    folder.record(stage="joint", round=2, interval=(0.5, float("-inf")))
    assert folder.history() == [
        {"stage": "joint", "round": 1, "loss": None, "sites": {"a": [1.0, None]}},
        {"stage": "joint", "round": 2, "interval": [0.5, None]},
    ]


def test_a_torn_last_line_is_not_read_and_is_dropped_on_rewind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.rewrite([])
    for number in range(3):
        folder.record(round=number, loss=0.1 + number)
    whole = folder.metrics.read_text()
    with folder.metrics.open("a") as file:
        file.write('{"round": 3, "lo')
    assert [line["round"] for line in folder.history()] == [0, 1, 2]
    folder.rewrite(folder.history())
    assert folder.metrics.read_text() == whole
    folder.record(round=3)
    assert [line["round"] for line in folder.history()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"3", b"{}", b'{"settings_hash": "two\\nlines"}']
)
def test_a_folder_with_settings_that_cannot_be_read_is_refused(
    tmp_path: Path, settings: Settings, content: bytes
) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match=r"choose another run\.folder$") as error:
        RunFolder(tmp_path).create(settings)
    assert "\n" not in str(error.value)


def test_a_folder_keeps_its_settings(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = compose("config", tiny)
    folder.create(settings)
    folder.create(compose("config", [*tiny, "device=cpu", "data.store=/elsewhere"]))
    written = json.loads((folder.path / "settings.json").read_text())
    assert written.pop("settings_hash") == settings.fingerprint()
    assert written == settings.shared()


def test_a_folder_with_another_runs_settings_is_refused(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(compose("config", tiny))
    before = (folder.path / "settings.json").read_text()
    with pytest.raises(UserError, match=r"run folder run .* other settings .*run\.folder"):
        folder.create(compose("config", [*tiny, "seed=2"]))
    assert (folder.path / "settings.json").read_text() == before


def test_the_latest_run_is_pointed_at(tmp_path: Path) -> None:
    for name in ("first", "second"):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        folder.point_latest()
    link = tmp_path / "latest"
    assert link.is_symlink() and link.resolve() == (tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest", "second"]


def test_a_folder_of_that_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").point_latest()
    assert not (tmp_path / "latest").is_symlink()


def test_a_file_of_that_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("mine")
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").point_latest()
    assert (tmp_path / "latest").read_text() == "mine"


def test_a_run_goes_on_where_no_link_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("this file system has no symbolic links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").point_latest()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_files_of_a_killed_process_with_the_same_id_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / f".latest.{os.getpid()}").symlink_to("gone")
    RunFolder(tmp_path / "run").point_latest()
    assert (tmp_path / "latest").resolve() == tmp_path / "run"


def test_a_file_is_refused_as_a_folder(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        RunFolder(tmp_path / "file").create(settings)


@pytest.mark.parametrize(
    ("inside", "outside", "refused"),
    [
        ("held", "held", True),
        ("held", "launched", True),
        ("launched", "launched", True),
        ("launched", "held", False),  # the server that was launched
    ],
)
def test_only_one_process_at_a_time_writes_to_a_folder(
    tmp_path: Path, inside: str, outside: str, refused: bool
) -> None:
    folder = RunFolder(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from mediffusion_core.run_io.run_folder import RunFolder\n"
        f"with RunFolder(Path(sys.argv[1])).{outside}(): print('entered')\n"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    with getattr(folder, inside)():
        done = subprocess.run(command, capture_output=True, text=True)
    if not refused:
        assert done.stdout == "entered\n"
        return
    assert done.returncode and done.stdout == ""
    assert f"another process runs in {folder.path}" in done.stderr.splitlines()[-1]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "entered\n"


def test_a_run_has_the_given_folder_or_one_by_its_id(tmp_path: Path) -> None:
    assert run_path(RunSettings(folder=tmp_path), 3) == tmp_path
    assert run_path(RunSettings(), 3) == Path.cwd() / "runs" / "flwr-3"


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"auc": float("nan"), "nested": {"list": [float("inf"), 1]}})
    assert json.loads(path.read_text()) == {"auc": None, "nested": {"list": [None, 1]}}
    with pytest.raises(TypeError):
        write_json(path, {"auc": object()})
    assert json.loads(path.read_text())["nested"] == {"list": [None, 1]}
    assert [found.name for found in tmp_path.iterdir()] == ["summary.json"]


# Trained model


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_saved_model_decides_as_before(
    tmp_path: Path, settings: Settings, multi_label: bool
) -> None:
    model = trained(settings, multi_label)
    model.save(tmp_path / "model")
    again = TrainedModel.load(tmp_path / "model", torch.device("cpu"))
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = model.encode(images)
    assert (again.classes, again.multi_label) == (CLASSES, multi_label)
    assert torch.equal(again.encode(images), latents)
    assert torch.equal(again.logits(latents), model.logits(latents))
    assert torch.equal(again.sample(3, 4, seed=1), model.sample(3, 4, seed=1))
    probabilities = again.classify(images)
    assert probabilities.shape == (5, 2)
    if not multi_label:
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


def test_a_saved_model_classifies_with_the_same_noise(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    chosen = [
        compose("config", (*tiny, f"evaluation.noise_levels={at}")) for at in ("[0.0,0.2]", "[0.0]")
    ]
    model, plain = (trained(settings) for settings in chosen)
    model.save(tmp_path / "model")
    again = TrainedModel.load(tmp_path / "model", torch.device("cpu"))
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.classify(images), model.classify(images))
    assert not torch.equal(plain.classify(images), model.classify(images))


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_saved_model_is_as_sure_as_before(
    tmp_path: Path, settings: Settings, multi_label: bool
) -> None:
    """A logit of log 9 is a probability of 0.9, and at temperature 2 one of 3 in 4."""
    logits = torch.tensor([[math.log(9.0), 0.0]])
    expected = torch.tensor([[0.75, 0.5]] if multi_label else [[0.75, 0.25]])
    model = trained(settings, multi_label)
    model.temperature = 2.0
    model.save(tmp_path / "model")
    again = TrainedModel.load(tmp_path / "model", torch.device("cpu"))
    torch.testing.assert_close(again.probabilities(logits), expected)
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    given = again.logits(again.encode(images)) / 2
    expected = given.sigmoid() if multi_label else given.softmax(dim=1)
    torch.testing.assert_close(again.classify(images), expected)


def test_a_model_written_before_there_was_a_temperature_has_none(
    tmp_path: Path, settings: Settings
) -> None:
    model = trained(settings)
    model.temperature = 2.0
    model.save(tmp_path / "model")
    description = tmp_path / "model" / "state.json"
    older = json.loads(description.read_text())
    del older["temperature"]
    description.write_text(json.dumps(older))
    (tmp_path / "model" / "SHA256SUMS").unlink()  # nor were there checksums
    again = TrainedModel.load(tmp_path / "model", torch.device("cpu"))
    logits = torch.tensor([[-1.0, 3.0]])
    assert torch.equal(again.probabilities(logits), logits.sigmoid())


def test_a_damaged_model_is_a_mistake_that_is_named(tmp_path: Path, settings: Settings) -> None:
    trained(settings).save(tmp_path / "model")
    weights = tmp_path / "model" / "head.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model is damaged: head\.safetensors is not as it was"):
        TrainedModel.load(tmp_path / "model", torch.device("cpu"))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": None},
        {"settings": {"seed": "one"}},
        {"classes": 3},
        {"classes": ["one", "class", "too", "many"]},
        {"temperature": "warm"},
        {"multi_label": "absent"},
    ],
)
def test_a_model_of_another_program_is_refused(
    tmp_path: Path, settings: Settings, change: dict[str, object]
) -> None:
    trained(settings).save(tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    path = tmp_path / "model" / "state.json"
    state = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in state.items() if value != "absent"}))
    with pytest.raises(UserError, match="holds no model of this program") as error:
        TrainedModel.load(tmp_path / "model", torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_saved_model_says_nothing_of_where_it_was_made(
    tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    paths = ["data.root", "data.store", "run.folder", "evaluation.inception_weights"]
    settings = compose("config", [*tiny, *(f"{key}=/secret/place" for key in paths)])
    trained(settings).save(tmp_path / "model")
    assert "secret" not in (tmp_path / "model" / "state.json").read_text()


def test_samples_differ_by_seed_and_are_images(settings: Settings) -> None:
    model = trained(settings)
    first, second = model.sample(2, 3, seed=0), model.sample(2, 3, seed=1)
    assert first.shape == (2, 1, 32, 32)
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_a_model_is_opened_for_use_not_for_training(tmp_path: Path, settings: Settings) -> None:
    trained(settings).save(tmp_path / "model")
    model = TrainedModel.load(tmp_path / "model", torch.device("cpu"))
    assert not model.joint.training and not model.codec.training
    latents = torch.zeros(1, *settings.latent_shape)
    assert torch.equal(model.logits(latents), model.logits(latents))


def test_a_folder_without_a_model_is_a_mistake_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no trained model in {tmp_path}"):
        TrainedModel.load(tmp_path, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_works_on_the_gpu_as_on_the_cpu(settings: Settings) -> None:
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    target = Target(torch.tensor([0, 1]), torch.tensor([True, False]), True)
    made = []
    for device in ("cpu", "cuda"):
        model = trained(settings)
        on = TrainedModel(settings, CLASSES, True, model.codec.to(device), model.joint.to(device))
        latents = on.encode(images)
        detail = on.detail(images, latents)
        explained = on.explain(latents, target, settings.evaluation.counterfactual, detail)
        made.append((on.logits(latents), explained.cpu(), on.sample(2, 4, seed=0)))
    for cpu, cuda in zip(*made, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-2, atol=1e-2)
