"""The baselines: they learn from labels and, with FixMatch, from pseudo-labels."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.classification import class_scores, exact_auc, macro
from simulations.baselines.local_training import BatchLoss, train_locally
from simulations.baselines.pixel_classifier import PixelClassifier, build_resnet
from simulations.baselines.semi_supervised.build import build_objective
from simulations.baselines.semi_supervised.fixmatch import cutout
from simulations.baselines.semi_supervised.settings import ConsistencySettings
from simulations.baselines.settings import BaselineSettings, Norm
from simulations.baselines.task import BaselineTask

SIDE = 16


def bright_and_dark(count: int, labelled: int, seed: int = 0) -> ImageSet:
    """Images of two exclusive classes, told apart by their brightness; the first have labels."""
    generator = np.random.default_rng(seed)
    classes = np.arange(count) % 2
    pixels = generator.integers(0, 100, (count, SIDE, SIDE, 1)) + 120 * classes[:, None, None, None]
    targets = torch.from_numpy(np.eye(2, dtype=np.float32)[classes])
    targets[labelled:] = torch.nan
    return ImageSet(pixels.astype(np.uint8), np.arange(count), targets)


def plain_task(baseline: BaselineSettings) -> BaselineTask:
    """A task of exclusive classes, without augmentation."""
    return BaselineTask(baseline, augmentation="none", multi_label=False, precision="fp32")


class Brightness(nn.Module):
    """Logits of dark and bright from the mean pixel in [-1, 1]; steep where sure."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(steepness))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3)) * self.steepness
        return torch.stack([-mean, mean], dim=1)


@pytest.mark.parametrize(
    ("norm", "consistency"),
    [("batch", None), ("batch", ConsistencySettings()), ("group", None)],
)
def test_a_baseline_learns_to_tell_bright_from_dark(
    norm: Norm, consistency: ConsistencySettings | None
) -> None:
    torch.manual_seed(0)
    network = build_resnet(channels=1, num_classes=2, stem_stride=2, norm=norm)
    baseline = BaselineSettings(
        norm=norm, rounds=1, local_epochs=20, batch_size=8, consistency=consistency
    )
    images = bright_and_dark(40, labelled=16)
    task = plain_task(baseline)
    report = train_locally(
        network,
        task.optimizer(network),
        images,
        task,
        round_number=1,
        seed=1,
        objective=build_objective(task, torch.full((2,), 0.5)),
    )
    assert report.labelled_seen == 16
    assert report.images_seen == report.steps * 8 * (1 if consistency is None else 3)
    unseen = bright_and_dark(20, labelled=20, seed=7)
    model = PixelClassifier(network, False, orientation_free=True, precision="fp32")
    logits = model.logits(unseen.take(torch.arange(20)))
    assert macro(exact_auc(class_scores(logits, False), unseen.targets)) == 1.0


def test_a_missing_monai_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)  # as Python marks what can't be imported
    with pytest.raises(UserError, match=r"needs MONAI: pip install 'fed-mediffusion\[studies\]'$"):
        build_resnet(channels=1, num_classes=2, stem_stride=2)


def test_group_normalisation_makes_logits_independent_of_the_batch() -> None:
    images = torch.rand(4, 1, 16, 16)
    torch.manual_seed(0)
    for norm, alone in (("group", True), ("batch", False)):
        network = build_resnet(channels=1, num_classes=2, stem_stride=1, norm=norm).train()
        together, single = network(images)[:2], network(images[:2])
        assert torch.allclose(together, single, atol=1e-4) == alone


def test_a_site_without_labels_trains_nothing() -> None:
    network = build_resnet(channels=1, num_classes=2, stem_stride=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task, images = plain_task(BaselineSettings()), bright_and_dark(8, labelled=0)
    report = train_locally(network, task.optimizer(network), images, task, round_number=1, seed=1)
    assert report.images_seen == report.labelled_seen == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_only_confident_predictions_become_pseudo_labels() -> None:
    """Unsure of everything, FixMatch is the supervised loss; sure, it adds to it."""

    def loss(steepness: float, consistency: ConsistencySettings | None) -> float:
        baseline = BaselineSettings(batch_size=4, consistency=consistency)
        task = plain_task(baseline)
        batches = BatchLoss(
            bright_and_dark(12, labelled=4), task, 3, build_objective(task, torch.full((2,), 0.5))
        )
        return float(batches.loss(Brightness(steepness)).detach())

    unsure, sure = 0.5, 20.0
    fixmatch = ConsistencySettings(threshold=0.95)
    assert loss(unsure, fixmatch) == pytest.approx(loss(unsure, None))
    # A square of half the side is greyed in the strong view, so that its loss is not 0.
    assert loss(sure, fixmatch) > loss(sure, None)


def test_orientations_are_averaged() -> None:
    class Corner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, 0, :1, 0]

    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0] = 1.0
    seen = PixelClassifier(Corner(), True, orientation_free=True, precision="fp32").logits(image)
    # Two of the eight orientations have the bright pixel in this corner; dark is -1.
    assert float(seen) == pytest.approx((2 * 1 + 6 * -1) / 8)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 33), st.integers(4, 33), st.integers(0, 1000))
def test_cutout_greys_one_square_of_at_most_half_the_side(
    height: int, width: int, seed: int
) -> None:
    images = torch.ones(3, 2, height, width)
    cut = cutout(images, torch.Generator().manual_seed(seed))
    hidden = cut == 0.5
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert bool(((cut == 1) | hidden).all())
    for one in hidden[:, 0]:
        rows, columns = one.any(dim=1), one.any(dim=0)
        assert torch.equal(one, rows[:, None] & columns[None])
        assert 1 <= int(rows.sum()) <= height // 2
        assert 1 <= int(columns.sum()) <= height // 2
