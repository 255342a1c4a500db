"""EfficientNet-Lite from ImageNet, fine-tuned on the originals at its own resolution."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.compose import compose
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.models.public_encoders import efficientnet_lite
from simulations.baselines.federated_run import BaselineRun
from simulations.baselines.fine_tuned import FineTuned, at_image_size
from simulations.baselines.local_training import BatchLoss, train_locally
from simulations.baselines.semi_supervised.build import build_objective
from simulations.baselines.semi_supervised.settings import ConsistencySettings
from simulations.baselines.settings import FineTunedSettings
from simulations.baselines.task import BaselineTask

SIDE = 64


@pytest.fixture(scope="module")
def overrides(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return (*tiny, f"data.store={tmp_path_factory.mktemp('store')}")


@pytest.fixture(scope="module")
def dataset(overrides: tuple[str, ...]) -> FederatedDataset:
    return open_federated_dataset(compose("config", overrides))


def test_images_at_another_side_are_those_of_the_same_rows(dataset: FederatedDataset) -> None:
    backwards = replace(
        dataset.store,
        image_ids=dataset.store.image_ids[::-1],
        images=dataset.store.images[::-1],
    )
    larger = at_image_size(replace(dataset, store=backwards), SIDE)
    assert larger.pixels.shape == (len(dataset.store.images), SIDE, SIDE, 1)
    rows = np.array([3, 0, 17])
    shrunk = larger.pixels[rows].reshape(3, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    others = backwards.images[None, ..., 0].astype(float)
    nearest = np.abs(shrunk[:, None] - others).mean(axis=(2, 3)).argmin(axis=1)
    assert nearest.tolist() == rows.tolist()


def test_training_moves_the_weights_and_not_the_batch_statistics() -> None:
    torch.manual_seed(0)
    network = FineTuned(SIDE, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = np.repeat(np.array([40, 200], np.uint8), 8)[:, None, None, None]
    targets = torch.eye(2).repeat_interleave(8, dim=0)
    images = ImageSet(np.tile(pixels, (1, SIDE, SIDE, 1)), np.arange(16), targets)
    settings = FineTunedSettings(rounds=1, local_epochs=10, batch_size=8, warmup_steps=0)
    task = BaselineTask(settings, augmentation="none", multi_label=False, precision="fp32")
    report = train_locally(network, task.optimizer(network), images, task, round_number=1, seed=0)
    after = network.state_dict()
    statistics = {name for name in after if "running_" in name or "num_batches" in name}
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)
    assert not torch.equal(before["network._conv_stem.weight"], after["network._conv_stem.weight"])
    network.eval()
    logits = network(images.take(torch.arange(16)) * 2 - 1)
    assert bool((logits.argmax(dim=1) == targets.argmax(dim=1)).all()) and report.steps == 20


def test_images_enter_as_those_of_imagenet() -> None:
    """Grey ones with three equal colours."""
    torch.manual_seed(0)
    ours = FineTuned(SIDE, 2).eval()
    reference = efficientnet_lite(1, SIDE).eval()
    reference._fc = ours.network._fc
    grey = torch.rand(3, 1, SIDE, SIDE)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    entered = (grey.repeat(1, 3, 1, 1) - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(ours(grey * 2 - 1), reference(entered), rtol=0, atol=1e-4)


def test_pseudo_labels_are_drawn_without_dropout() -> None:
    torch.manual_seed(0)
    seen = []

    class Recorded(FineTuned):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(images)

    targets = torch.eye(2).repeat_interleave(4, dim=0)
    targets[::2] = torch.nan
    images = ImageSet(np.zeros((8, SIDE, SIDE, 1), np.uint8), np.arange(8), targets)
    settings = FineTunedSettings(batch_size=2, consistency=ConsistencySettings())
    task = BaselineTask(settings, augmentation="none", multi_label=False, precision="fp32")
    BatchLoss(images, task, 0, build_objective(task, torch.full((2,), 0.5))).loss(
        Recorded(SIDE, 2).train()
    )
    assert seen == [False, True]


def test_passes_over_the_labels_can_be_repeated() -> None:
    settings = FineTunedSettings(local_epochs=0.5)
    assert settings.repeated(4).local_epochs == pytest.approx(2)
    assert settings.repeated(0.2).local_epochs == pytest.approx(0.1)


@pytest.mark.parametrize("consistency", [None, ConsistencySettings(ratio=1)])
def test_a_run_has_figures_of_the_test_set(
    overrides: tuple[str, ...], dataset: FederatedDataset, consistency: ConsistencySettings | None
) -> None:
    baseline = FineTunedSettings(
        image_size=SIDE, rounds=1, every=1, local_epochs=0.3, batch_size=4, consistency=consistency
    )
    run = BaselineRun(compose("config", overrides), baseline, dataset)
    figures, logits = run.execute(lambda done, total: None)
    assert logits.shape == (len(dataset.test_rows), len(dataset.store.classes))
    assert 0 <= figures["auc_macro"] <= 1 and figures["selected_round"] == 1
    assert figures["parameters"] > 3e6 and json.dumps(figures)
