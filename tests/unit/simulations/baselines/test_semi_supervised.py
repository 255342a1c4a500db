"""Losses of unlabelled images: against closed forms, and in a federated run on phantoms."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.settings import Settings
from simulations.baselines.federated_run import BaselineRun
from simulations.baselines.local_training import train_locally
from simulations.baselines.pixel_classifier import build_resnet
from simulations.baselines.semi_supervised.build import build_objective
from simulations.baselines.semi_supervised.fedirm import FedIRM
from simulations.baselines.semi_supervised.mean_teacher import MeanTeacher, sharpened
from simulations.baselines.semi_supervised.objective import ramp
from simulations.baselines.semi_supervised.server import Update
from simulations.baselines.semi_supervised.settings import (
    CBAFedSettings,
    FedIRMSettings,
    MeanTeacherSettings,
    RSCFedSettings,
    SemiSupervised,
)
from simulations.baselines.settings import BaselineSettings
from simulations.baselines.task import BaselineTask
from simulations.engine.cells import DESCRIPTION, FIGURES
from simulations.studies.labels.cells import cells_of, run_cell
from simulations.studies.labels.methods import METHODS

SIDE = 8
GENERATOR = torch.Generator()


def task_of(
    consistency: SemiSupervised, rounds: int = 10, multi_label: bool = False
) -> BaselineTask:
    """Of small batches without augmentation, so that all views are equal."""
    baseline = BaselineSettings(rounds=rounds, batch_size=4, consistency=consistency)
    return BaselineTask(baseline, "none", multi_label, "fp32")


class Logits(nn.Module):
    """Logits of three classes from an image's mean pixel, by one weight for each class."""

    def __init__(self, weights: tuple[float, float, float]) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 3, bias=False)
        self.fc.weight.data = torch.tensor(weights)[:, None]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.mean(dim=(1, 2, 3))[:, None])
        return logits


def unlabelled(count: int) -> ImageSet:
    """Random images without labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 1)).astype(np.uint8)
    return ImageSet(pixels, np.arange(count), torch.full((count, 3), torch.nan))


def test_the_ramp_is_that_of_the_paper() -> None:
    assert ramp(0.0, 0.15) == pytest.approx(np.exp(-5))
    assert ramp(0.1, 0.15) == pytest.approx(np.exp(-5 / 9))
    assert ramp(0.15, 0.15) == ramp(0.9, 0.15) == ramp(0.0, 0.0) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.1, 1.0))
def test_sharpening_moves_probabilities_away_from_even_odds(
    probability: float, temperature: float
) -> None:
    pair = torch.tensor([[probability, 1 - probability]])
    sharp = sharpened(pair, temperature, multi_label=False)
    expected = probability ** (1 / temperature)
    expected /= expected + (1 - probability) ** (1 / temperature)
    assert sharp.tolist()[0] == pytest.approx([expected, 1 - expected], abs=1e-5)
    alone = sharpened(pair[:, :1], temperature, multi_label=True)
    assert float(alone) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_mean_teachers_loss_is_the_squared_distance_to_its_probabilities(
    multi_label: bool,
) -> None:
    task = task_of(MeanTeacherSettings(weight=2.0), multi_label=multi_label)
    objective = MeanTeacher(task, MeanTeacherSettings(weight=2.0))
    objective.begin_round(10)
    student, images = Logits((0.0, 2.0, 1.0)), torch.rand(5, 1, SIDE, SIDE)
    objective.prepare(Logits((1.0, 0.0, -1.0)), images, GENERATOR)  # sets the teacher
    views, loss = objective.prepare(student, images, GENERATOR)
    inputs = images.mean(dim=(1, 2, 3)) * 2 - 1
    expected = 0.0
    for value in inputs.tolist():
        first, second = (
            torch.tensor([1.0, 0.0, -1.0]) * value,
            torch.tensor([0.0, 2.0, 1.0]) * value,
        )
        pair = [one.sigmoid() if multi_label else one.softmax(0) for one in (first, second)]
        expected += 2.0 * float((pair[0] - pair[1]).square().sum()) / 5
    assert float(loss(student(views * 2 - 1)).detach()) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_is_the_moving_average_of_the_sites_weights_through_all_rounds() -> None:
    objective = MeanTeacher(task_of(MeanTeacherSettings()), MeanTeacherSettings(teacher_decay=0.6))
    objective.prepare(Logits((5.0, 5.0, 5.0)), torch.rand(2, 1, SIDE, SIDE), GENERATOR)
    expected = torch.tensor([5.0, 5.0, 5.0])
    for step in range(6):
        network = Logits((float(step), 1.0, 2.0))
        objective.begin_round(step + 1)
        objective.end_step(network)
        decay = min(1 - 1 / (step + 1), 0.6)
        expected = decay * expected + (1 - decay) * network.fc.weight[:, 0].detach()
    assert objective._teacher is not None
    torch.testing.assert_close(objective._teacher.state_dict()["fc.weight"][:, 0], expected)


@pytest.mark.parametrize(
    "consistency", [MeanTeacherSettings(), FedIRMSettings(), RSCFedSettings(), CBAFedSettings()]
)
def test_a_site_without_labels_trains_once_labels_alone_have_had_their_rounds(
    consistency: SemiSupervised,
) -> None:
    late = consistency.model_copy(update={"warm_up": 0.5})
    task, images = task_of(late), unlabelled(20)
    objective = build_objective(task, torch.full((3,), 1 / 3))
    torch.manual_seed(0)
    network = build_resnet(1, 3, stem_stride=2, norm="group", widths=(32, 32, 32, 32))
    if isinstance(objective, FedIRM):
        objective.relations = torch.eye(3)
    seen = []
    for number in (1, 5, 6, 7):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        report = train_locally(
            network,
            task.optimizer(network),
            images,
            task,
            round_number=number,
            seed=number,
            objective=objective,
        )
        moved = any(
            not torch.equal(before[name], value) for name, value in network.state_dict().items()
        )
        assert moved == (report.steps > 0)
        seen.append(report.images_seen)
    assert seen == [0, 0, 4, 4] and report.labelled_seen == 0


@pytest.mark.parametrize("method", ["mean-teacher", "rscfed"])
def test_a_cell_trains_at_all_sites_and_has_figures(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path, method: str
) -> None:
    base = [*tiny, *few, f"data.store='{tmp_path / 'store'}'"]
    [cell] = cells_of(METHODS[method].scaled(0.02), (), base, 0.4, seed=0)
    cell.describe(tmp_path)
    folder = cell.folder(tmp_path)
    assert json.loads((folder / DESCRIPTION).read_text())["rival"]["consistency"]["kind"] == method
    run_cell(folder)
    figures = json.loads((folder / FIGURES).read_text())
    assert 0 <= figures["auc_macro"] <= 1 and 1 <= figures["selected_round"] <= 3


@pytest.fixture(scope="module")
def phantoms(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, FederatedDataset]:
    """Three sites of phantoms, the last one without a label."""
    chosen = compose("config", (*tiny, *few, f"data.store={tmp_path_factory.mktemp('store')}"))
    return chosen, open_federated_dataset(chosen)


@pytest.mark.parametrize("method", ["freematch", "fedirm", "cbafed"])
def test_methods_of_exclusive_classes_refuse_findings(
    phantoms: tuple[Settings, FederatedDataset], method: str
) -> None:
    baseline = METHODS[method].baseline
    assert isinstance(baseline, BaselineSettings)
    with pytest.raises(UserError, match=f"^{method} needs images of one class each"):
        BaselineRun(phantoms[0], baseline, phantoms[1], widths=(32, 32, 32, 32))


@pytest.mark.parametrize("method", ["mean-teacher", "freematch", "fedirm", "rscfed", "cbafed"])
def test_methods_learn_exclusive_classes_with_the_help_of_all_sites(
    phantoms: tuple[Settings, FederatedDataset], method: str
) -> None:
    """Two classes differ in brightness; the last site has no label, and still its images train."""
    chosen, dataset = phantoms
    count, num_classes = dataset.store.labels.shape
    classes = np.arange(count) % 2
    pixels = np.random.default_rng(0).integers(0, 60, dataset.store.images.shape)
    pixels += (150 * classes)[:, None, None, None]
    labels = np.eye(num_classes, dtype=np.float32)[classes]
    exclusive = replace(
        dataset,
        store=replace(dataset.store, labels=labels, multi_label=False),
        pixels=pixels.astype(np.uint8),
    )
    baseline = METHODS[method].baseline
    assert isinstance(baseline, BaselineSettings)
    short = baseline.model_copy(
        update={
            "rounds": 8,
            "every": 8,
            "batch_size": 4,
            "local_epochs": 4,
            "ema_decay": 0.5,
            "warmup_steps": 2,
        }
    )
    run = BaselineRun(chosen, short, exclusive, widths=(32, 32, 32, 32))
    updates: list[Update] = []
    weights = run._server.weights

    def kept(given: Sequence[Update]) -> list[float]:
        updates.extend(given)
        return weights(given)

    run._server.weights = kept  # type: ignore[method-assign]
    figures, logits = run.execute(lambda done, total: None)
    assert logits.shape == (len(dataset.test_rows), num_classes)
    assert figures["auc_macro"] > 0.8
    assert {update.site for update in updates if update.weight} == {0, 1, 2}
