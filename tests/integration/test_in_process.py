"""Runs in one process: what a killed run restores, and labels at the server alone."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from integration.processes import LIMIT
from integration.run_folders import (
    STAGES,
    assert_same_arrays,
    assert_same_end,
    checkpoint,
    untimed,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.compose import compose
from mediffusion_core.common.component_folder import read_folder
from mediffusion_core.common.sealed_tensors import load_tensors
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.models.class_means import ClassMeans, ClassSums
from mediffusion_core.models.public_encoders import build_encoder
from mediffusion_core.models.whitening import FeatureSums, Whitening
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.run_io.set_back import set_back
from simulations.engine.in_process import run_in_process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.store={tmp_path_factory.mktemp('store')}"


IN_PROCESS = "import sys; from simulations.engine.in_process import run_in_process as run; "


def run_whole_and_broken(arguments: list[str], until: str, folder: Path) -> tuple[RunFolder, ...]:
    """The same run undisturbed, and killed after a checkpoint and resumed; both end alike.

    In one process each, since what a resumed run takes up does not depend on how sites are reached.
    """
    whole, broken = folders = [RunFolder(folder / name) for name in ("whole", "broken")]
    overrides = [[*arguments, f"run.folder='{one.path}'"] for one in folders]
    run_in_process("config", overrides[0])

    program = f"{IN_PROCESS}run('config', sys.argv[1:])"
    killed = subprocess.Popen([sys.executable, "-c", program, *overrides[1]])
    deadline = time.monotonic() + LIMIT
    while not checkpoint(broken, until):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not checkpoint(broken, list_checkpoints(whole.checkpoints)[-1].folder.name)
    run_in_process("config", overrides[1])

    assert_same_end(broken, whole)
    return whole, broken


def assert_tracked_once(folder: RunFolder) -> None:
    """TensorBoard, the default tracker, has each round of a resumed run once, and its pictures."""
    read = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    rounds = [line["round"] for line in folder.history() if line["stage"] == "joint"]
    assert [one.step for one in read.Scalars("joint/loss")] == rounds == [1, 2, 3, 4]
    assert [one.step for one in read.Images("pictures/counterfactuals")] == [3, 4]
    assert not [tag for tag in read.Tags()["scalars"] if "patients" in tag]


def test_the_state_of_server_and_sites_is_restored(
    tiny: tuple[str, ...],
    few: tuple[str, ...],
    aligned: tuple[str, ...],
    store: str,
    tmp_path: Path,
) -> None:
    """Server optimizers, control variates, alignment and normalisation of the sites' own."""
    chosen = [
        *aligned,
        "federation.fraction_train=0.67",
        "federation.num_rounds=4",
        "federation.server.autoencoder.method=fedavgm",
        "federation.server.autoencoder.beta1=0.3",
        "federation.server.unet.method=fedyogi",
        "federation.server.unet.learning_rate=0.003",
        "federation.local_normalisation=true",
        "training.joint.proximal_weight=0.01",
        "training.joint.control_variates=true",
    ]
    whole, broken = run_whole_and_broken([*tiny, *few, *chosen, store], "joint-2", tmp_path)
    newest = list_checkpoints(whole.checkpoints)[-1]
    assert {name for name in newest.components() if name.startswith("server_")} == {
        "server_autoencoder",
        "server_unet",
    }
    took_part = [tuple(line["sites"]) for line in whole.history() if line["stage"] in STAGES]
    assert {len(sites) for sites in took_part} == {2} and len(set(took_part)) > 1
    sites = {
        component: {name.split("/")[0] for name in newest.load(f"control_{component}")}
        for component in ("unet", "head")
    }
    # site-2 has no label, so it has no gradient of the head.
    assert sites == {"unet": {"site-0", "site-1", "site-2"}, "head": {"site-0", "site-1"}}
    assert_tracked_once(broken)
    own = [sorted(one.path.glob("sites/*/normalisation-*")) for one in (whole, broken)]
    assert own[0]
    for one, other in zip(*own, strict=True):
        assert (one.parent.name, one.name) == (other.parent.name, other.name)
        tensors, expected = load_tensors(one)[0], load_tensors(other)[0]
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)

    # Set back by a round, the run ends so once more. Only rounds 3 and 4 are evaluated.
    overrides = [*tiny, *few, *chosen, store, f"run.folder='{broken.path}'"]
    assert (broken.model / "state.json").exists()
    set_back(broken, "3", compose("config", overrides))
    assert not broken.model.exists()
    run_in_process("config", overrides)
    assert (broken.path / "tensorboard-2").is_dir()
    assert_same_end(broken, whole)
    assert untimed(broken.history()) == untimed(whole.history())
    assert_same_arrays(read_folder(broken.model), read_folder(whole.model))
    pictures = [sorted(path.name for path in one.pictures.iterdir()) for one in (broken, whole)]
    assert pictures[0] == pictures[1]


def test_the_server_alone_may_hold_the_labels(
    shortest: tuple[str, ...], few: tuple[str, ...], store: str, tmp_path: Path
) -> None:
    """One participant more than sites, and the only one that trains the classifier."""
    run = f"run.folder='{tmp_path / 'run'}'"
    folder = run_in_process("config", [*shortest, *few, store, run, "data.labels_at=server"])
    joint = [line for line in folder.history() if line["stage"] == "joint"]
    seen = {site: metrics["labelled_seen"] for site, metrics in joint[-1]["sites"].items()}
    assert [site for site, count in seen.items() if count] == ["server"]
    assert sorted(seen) == ["server", "site-0", "site-1", "site-2"]


def test_a_run_is_aligned_with_the_directions_of_all_sites_images(
    shortest: tuple[str, ...], few: tuple[str, ...], aligned: tuple[str, ...], tmp_path: Path
) -> None:
    """The labelled and the unlabelled site's; computed here from all images at once.

    So is the classifier of the directions, whose probabilities all images get.
    """
    folder = RunFolder(tmp_path / "run")
    places = (f"data.store={tmp_path / 'store'}", f"run.folder='{folder.path}'")
    distilled = "training.joint.alignment.distillation_weight=1"
    overrides = [*shortest, *few, *aligned, distilled, *places]
    run_in_process("config", overrides)

    settings = compose("config", overrides)
    dataset = open_federated_dataset(settings)
    rows = np.concatenate([dataset.train(site).rows for site in range(3)])
    assert dataset.at_size is not None
    images = as_batch(dataset.at_size(64, None).images[rows])
    features = build_encoder("image-statistics", 64)(images).half()
    groups = dataset.groups(rows)
    expected = Whitening.of(FeatureSums.of(features, groups), 8, 0.1)
    kept = list_checkpoints(folder.checkpoints)[-1].load("whitening")
    # Eigenvectors have no sign: distances are compared.
    ours, theirs = Whitening.of_arrays(kept)(features.float()), expected(features.float())
    torch.testing.assert_close(
        torch.cdist(ours, ours), torch.cdist(theirs, theirs), rtol=0.01, atol=0.02
    )
    sums, targets = (
        FeatureSums.of(features, groups),
        torch.cat([dataset.train(site).targets for site in range(3)]),
    )
    classifier = ClassMeans.of(ClassSums.of(features, targets), sums, expected, multi_label=True)
    probabilities = ClassMeans.of_arrays(kept)(ours).sigmoid()
    torch.testing.assert_close(probabilities, classifier(theirs).sigmoid(), rtol=0.02, atol=0.01)
    (line,) = [one for one in folder.history() if one["stage"] == "joint"]
    assert 0 < line["alignment_loss"] < 100 and 0 < line["distillation_loss"] < 100
    latents, _ = load_tensors(folder.path / "sites" / "site-2" / "latents.safetensors")
    assert latents["directions"].shape == (len(dataset.train(2)), 8)
    last = probabilities[-len(dataset.train(2)) :]
    torch.testing.assert_close(latents["soft_targets"].float(), last, rtol=0.02, atol=0.01)
