"""`study attack` on a tiny federation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.untrained import untrained_model
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.dealing_record import record_dealing
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.evaluation.membership_inference import attack
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.cli.main import app
from simulations.engine.simulate import read_launch
from simulations.studies.attack import reconstruction
from simulations.studies.attack.candidates import Candidates
from simulations.studies.attack.replay import Replay
from simulations.studies.attack.study import study_attack
from simulations.studies.attack.update import update_attacks

ATTACKS = {
    "diffusion loss",
    "diffusion loss at one timestep",
    "classification loss",
    "predictions and labels",
    "predictions",
    "likelihood ratio",
    "weights of one round",
    "moments of one round",
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "STEPS", 10)


def untrained_run(overrides: list[str], folder: Path) -> Path:
    """The folder of a run, as far as the study needs it, with an untrained model."""
    overrides = [*overrides, f"data.store='{folder / 'store'}'"]
    settings = compose("config", overrides)
    dataset = open_federated_dataset(settings)
    model = untrained_model(settings, dataset.store.classes)
    Replay(settings, dataset, folder).with_latents_by(model.codec)
    model.save(folder / "run" / "model")
    launch = {"config_name": "config", "overrides": overrides}
    (folder / "run" / "launch.json").write_text(json.dumps(launch))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run([*tiny], tmp_path_factory.mktemp("attacked"))


def test_a_run_is_attacked_over_all_units_and_at_each_site(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", "attack", str(run), "--shadows", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(run / "attack.json")
    figures = json.loads((run / "attack.json").read_text())
    assert figures["unit"] == "patient" and "epsilon" not in figures
    assert set(figures["attacks"]) == ATTACKS
    for name, found in figures["attacks"].items():
        if "round" not in name:
            assert 0.2 < found["auc"] < 0.8  # an untrained model has no members
        assert found["auc_interval"][0] <= found["auc"] <= found["auc_interval"][1]
        assert found["strict_tpr"] <= found["tpr"] and found["adversary"]
    diffusion, classification = (
        figures["attacks"][f"{kind} loss"] for kind in ("diffusion", "classification")
    )
    assert set(diffusion["sites"]) == {"site-0", "site-1", "site-2"}
    assert set(classification["sites"]) == {"site-0", "site-1"}  # site-2 has no labels
    assert sum(one["members"] for one in diffusion["sites"].values()) == diffusion["members"]
    half = figures["attacks"]["diffusion loss at one timestep"]
    assert half["members"] == diffusion["members"] // 2
    assert str(half["timestep"]) in half["auc_by_timestep_on_the_other_half"]
    rebuilt = figures["reconstruction"]
    assert rebuilt["epsilon"] == 8 and rebuilt["noise_multiplier"] > 0.3
    for kind in ("without_privacy", "with_privacy", "mean_image"):
        assert len(rebuilt[kind]["psnr"]) == len(rebuilt[kind]["ssim"]) == rebuilt["images"]
    for name in ("roc", "reconstruction"):
        with Image.open(run / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    kept = {path: path.stat().st_mtime_ns for path in (run / "shadows").iterdir()}
    assert len(kept) == 2
    again = json.loads(study_attack(run, tmp_path / "again.json", "cpu", 3).read_text())["attacks"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len([*(run / "shadows").iterdir()]) == 3
    assert again.pop("likelihood ratio") != figures["attacks"].pop("likelihood ratio")
    assert again == figures["attacks"]


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    with pytest.raises(UserError, match="--shadows 1: allowed are 0"):
        study_attack(run, tmp_path / "attack.json", "cpu", 1)
    for latents in run.glob("sites/*/latents.safetensors"):
        latents.unlink()
    with pytest.raises(UserError, match="no round can be made again"):
        study_attack(run, tmp_path / "attack.json", "cpu")
    (run / "launch.json").unlink()
    with pytest.raises(UserError, match="holds no run of simulate"):
        study_attack(run, tmp_path / "attack.json", "cpu")


def test_no_round_is_attacked_where_the_server_has_sums_alone(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    shared = (
        "data.phantom.patients_per_site=[12,12,12,12]",
        "federation.num_sites=4",
        "data.labelled_fraction_by_site={}",
        "privacy=dp",
        "privacy.target_delta=1e-4",
        "privacy.autoencoder=frozen",
        "privacy.trained=head",
        "privacy.secure_aggregation.enabled=true",
        "model.autoencoder.linear_start=true",
        "model.autoencoder.channels=[16]",
        "model.autoencoder.patch_size=4",
        "model.autoencoder.norm_groups=4",
        "model.head.latent_statistics=true",
        "training.joint.diffusion_weight=0",
        "training.joint.noised_fraction=0",
    )
    run = untrained_run([*tiny, *shared], tmp_path)
    dataset = open_federated_dataset(compose(*read_launch(run)))
    assert dataset.unit_hash
    for client in dataset.clients:
        record_dealing(run / "sites" / client.site, dataset.unit_hash)
    found = json.loads(study_attack(run, tmp_path / "attack.json", "cpu").read_text())
    assert set(found["attacks"]) == {
        "classification loss",
        "predictions and labels",
        "predictions",
    }


def test_a_private_round_is_made_again_and_charged_elsewhere(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path
) -> None:
    private = ("privacy=dp", "privacy.target_epsilon=null", "privacy.noise_multiplier=4")
    run = untrained_run([*tiny, *few, *private], tmp_path)
    settings = compose(*read_launch(run))
    model = TrainedModel.load(run / "model", torch.device("cpu"))
    candidates = Candidates.of(open_federated_dataset(settings), settings.privacy.unit)
    attacks = update_attacks(run, model, candidates, settings, Console(quiet=True))
    assert set(attacks) == {"weights of one round", "moments of one round"}
    for one in attacks.values():
        members, strangers = one.joined()
        assert (np.abs(members) > 0).all() and (np.abs(strangers) < 0.5).all()
        assert attack(members, strangers, 0).auc_interval[0] < 0.6
    assert not (run / "ledger").exists()
