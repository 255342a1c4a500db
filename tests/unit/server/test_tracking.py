"""Trackers, read back by their own clients: each line once, and no failure that ends a run."""

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import RunSettings
from server.tracking import tracking
from server.tracking.tracking import Tracking, refuse_missing

SITE = {"images_seen": 40, "loss": 0.5, "patients": 20}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run after its census and one round of the autoencoder."""
    folder = RunFolder(tmp_path / "run")
    folder.pictures.mkdir(parents=True)
    folder.record(stage="census", round=1, rounds=1, time=0.5, sites={"a": {"images": 60}})
    folder.record(
        stage="autoencoder", round=1, rounds=1, time=1.0, loss=0.5, psnr=20.0, sites={"a": SITE}
    )
    draw(folder.pictures / "reconstructions.png")
    return folder


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path)


def add_round(folder: RunFolder, number: int) -> None:
    """A joint round with its evaluation."""
    aside = [{"site": "b", "kind": "train.joint", "reason": "sent no reply in time"}]
    traffic = {"a": {"bytes_sent": 7, "bytes_received": 8}}
    folder.record(
        stage="joint", round=number, rounds=9, time=2.0 + number, loss=1 / number,
        sites={"a": SITE}, traffic=traffic, set_aside=aside,
    )  # fmt: skip
    folder.record(
        stage="evaluation", round=number, rounds=9, time=2.5 + number, auc_macro=0.75, fid=None,
        auc_macro_interval=[0.7, 0.8], auc_per_class={"Mass": {"auc": 0.75, "positives": 3}},
    )  # fmt: skip
    draw(folder.round_pictures(number) / "counterfactuals.png")
    draw(folder.round_pictures(number) / "samples.png")


FIGURES = {
    "autoencoder/loss",
    "autoencoder/psnr",
    "autoencoder/sites/a/images_seen",
    "autoencoder/sites/a/loss",
    "joint/loss",
    "joint/sites/a/images_seen",
    "joint/sites/a/loss",
    "joint/traffic/a/bytes_sent",
    "joint/traffic/a/bytes_received",
    "evaluation/auc_macro",
    "evaluation/auc_per_class/Mass/auc",
    "evaluation/auc_per_class/Mass/positives",
}
PICTURES = {"pictures/reconstructions", "pictures/counterfactuals"}


def follow_and_resume(name: Any, folder: RunFolder) -> None:
    """Three joint rounds, the last one after the run was resumed."""
    with pytest.raises(RuntimeError), Tracking([name], folder) as followed:
        for number in (1, 2):
            add_round(folder, number)
            followed.follow()
            followed.follow()
        # A line without a checkpoint is made again by a run that continues.
        kept = folder.history()
        folder.record(stage="joint", round=3, rounds=9, time=9.0, loss=9.0)
        raise RuntimeError("a site failed")
    folder.rewrite(kept)
    with Tracking([name], folder) as followed:
        add_round(folder, 3)
        followed.follow()


def events(path: Path) -> Any:
    return EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0}).Reload()


def points(path: Path, name: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in events(path).Scalars(name)]


def test_tensorboard_has_each_step_of_a_resumed_run_once(folder: RunFolder) -> None:
    follow_and_resume("tensorboard", folder)
    read = events(folder.path / "tensorboard")
    assert set(read.Tags()["scalars"]) == FIGURES
    assert set(read.Tags()["images"]) == PICTURES
    for name, steps in (("joint/loss", [1, 2, 3]), ("autoencoder/psnr", [1])):
        assert [one.step for one in read.Scalars(name)] == steps
    assert [one.value for one in read.Scalars("joint/loss")] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [one.step for one in read.Images("pictures/counterfactuals")] == [1, 2, 3]
    [drawn] = read.Images("pictures/reconstructions")
    assert (drawn.width, drawn.height) == (6, 4)
    assert drawn.encoded_image_string == (folder.pictures / "reconstructions.png").read_bytes()


def test_mlflow_has_each_step_of_a_resumed_run_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    follow_and_resume("mlflow", folder)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path / 'mlflow' / 'mlflow.db'}")
    [experiment] = [one for one in client.search_experiments() if one.name == "fed-mediffusion"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.metrics.keys() == FIGURES
    found = client.get_metric_history(run.info.run_id, "joint/loss")
    assert [(one.step, one.value) for one in found] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    held = client.list_artifacts(run.info.run_id, "pictures/counterfactuals")
    assert [Path(one.path).name for one in held] == [f"evaluation-000{n}" for n in (1, 2, 3)]
    assert {tag for tag in run.data.tags if "user" in tag or "source" in tag} == set()


def test_wandb_keeps_a_resumed_run_offline(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-machine")
    follow_and_resume("wandb", folder)
    first, second = sorted((folder.path / "wandb").glob("offline-run-*"))
    assert first.name.split("-")[3] == second.name.split("-")[3]  # offline-run-TIME-ID
    held = [sum(1 for _ in one.rglob("*.png")) for one in (first, second)]
    assert held == [3, 1]
    written = b"".join(path.read_bytes() for path in first.glob("*.wandb"))
    assert b"joint/loss" in written and b"patients" not in written
    assert b"secret-machine" not in written


def test_a_run_that_was_set_back_begins_anew(folder: RunFolder) -> None:
    with Tracking(["tensorboard"], folder) as followed:
        kept = folder.history()
        for number in (1, 2):
            add_round(folder, number)
        followed.follow()
    folder.rewrite(kept)
    with Tracking(["tensorboard"], folder) as followed:
        add_round(folder, 1)
        followed.follow()
    former, now = (folder.path / name for name in ("tensorboard", "tensorboard-2"))
    assert [step for step, _ in points(former, "joint/loss")] == [1, 2]
    assert [step for step, _ in points(now, "joint/loss")] == [1]
    assert [step for step, _ in points(now, "autoencoder/loss")] == [1]


def test_a_failure_is_one_warning_and_the_next_start_sends_what_is_missing(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    add_round(folder, 1)
    broken = folder.round_pictures(1) / "counterfactuals.png"
    broken.write_bytes(b"half a picture")
    with caplog.at_level(logging.WARNING), Tracking(["tensorboard"], folder) as followed:
        for number in (2, 3):
            add_round(folder, number)
            followed.follow()
    [warning] = [one.getMessage() for one in caplog.records if "tensorboard" in one.getMessage()]
    assert warning.startswith("tensorboard gets no more figures until the run is resumed: ")
    draw(broken)
    with Tracking(["tensorboard"], folder):
        pass
    for name in ("joint/loss", "evaluation/auc_macro"):
        assert [step for step, _ in points(folder.path / "tensorboard", name)] == [1, 2, 3]


def test_a_tracker_that_cannot_begin_ends_no_run(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.path / "trackers.json").write_text('{"tensorboard": {"run": "events", "lines": 0}}')
    (folder.path / "events").write_text("no folder")
    with caplog.at_level(logging.WARNING), Tracking(["tensorboard"], folder) as followed:
        followed.follow()
    assert len([one for one in caplog.records if one.name.startswith("server.tracking")]) == 1


def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    monkeypatch.setitem(tracking.LIBRARIES, "mlflow", ("no_such_library", "mlflow"))
    with pytest.raises(UserError, match=r"no_such_library is not .* 'fed-mediffusion\[mlflow\]'"):
        refuse_missing(["tensorboard", "mlflow"])
    with pytest.raises(UserError, match="no_such_library"):
        Tracking(["mlflow"], folder)


def test_no_tracker_is_allowed() -> None:
    assert RunSettings(trackers=()).trackers == ()
    assert RunSettings().trackers == ("tensorboard",)
