"""Pseudo-labels and the loss on unlabelled images, against slow references and closed forms."""

from dataclasses import replace

import pytest
import torch
from helpers.toy import PROCESS, generator, joint_training, toy_network, train_toy
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.data.augmentation import cutout
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import (
    ConsistencySettings,
    JointTraining,
)
from mediffusion_core.training.denoising import Denoising
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_report import LocalReport
from mediffusion_core.training.loss import JointBatch, LabelledRows, joint_losses, total_loss
from mediffusion_core.training.semi_supervised.consistency import Consistency
from mediffusion_core.training.semi_supervised.pseudo_labels import (
    MOMENTUM,
    SelfAdaptive,
    adaptive_labels,
    class_labels,
    finding_labels,
    fixed_labels,
    prevalence_thresholds,
)

NAN = float("nan")


def probabilities(seed: int, count: int = 12, classes: int = 4) -> Tensor:
    return (torch.randn(count, classes, generator=generator(seed)) * 2).softmax(dim=1)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


# Labels and thresholds


@given(st.integers(0, 999), st.lists(st.floats(0.2, 0.99), min_size=4, max_size=4))
def test_a_class_is_labelled_where_it_is_likeliest_and_reaches_its_threshold(
    seed: int, levels: list[float]
) -> None:
    given, thresholds = probabilities(seed), torch.tensor(levels)
    expected = torch.full((12, 4), NAN)
    for row in range(12):
        likeliest = max(range(4), key=lambda c: float(given[row, c]))
        if given[row, likeliest] >= thresholds[likeliest]:
            expected[row] = torch.tensor([float(c == likeliest) for c in range(4)])
    assert same(class_labels(given, thresholds), expected)


@given(st.integers(0, 999), st.floats(0.5, 0.99))
def test_a_finding_is_present_above_and_absent_below(seed: int, level: float) -> None:
    given = torch.rand(12, 3, generator=generator(seed))
    threshold = float(torch.tensor(level))
    expected = torch.tensor(
        [[1.0 if p >= threshold else 0.0 if p <= 1 - threshold else NAN for p in row]
         for row in given.tolist()]
    )  # fmt: skip
    assert same(fixed_labels(threshold, multi_label=True)(given), expected)


def test_one_threshold_for_both_leaves_no_finding_open() -> None:
    given, level = torch.rand(50, 3, generator=generator()), torch.tensor([0.2, 0.5, 0.9])
    assert torch.equal(finding_labels(given, level, level), (given >= level).float())


def test_a_fixed_threshold_is_that_of_every_class() -> None:
    given = probabilities(3)
    labels = fixed_labels(0.6, multi_label=False)(given)
    assert torch.equal(labels.isnan().any(dim=1), given.amax(dim=1) < 0.6)
    assert 0 < int(labels.isnan().any(dim=1).sum()) < 12


@given(st.integers(0, 99), st.lists(st.floats(0.02, 0.98), min_size=3, max_size=3))
def test_findings_are_as_often_positive_as_labels_are(seed: int, shares: list[float]) -> None:
    sample = torch.rand(500, 3, generator=generator(seed)) ** torch.tensor([1.0, 4.0, 0.2])
    labels = adaptive_labels(sample, torch.tensor(shares))(sample)
    assert labels.mean(dim=0).tolist() == pytest.approx(shares, abs=1 / 250)
    thresholds = prevalence_thresholds(sample, torch.tensor(shares))
    for finding in range(3):
        ordered = sorted(sample[:, finding].tolist())
        rank = (1 - shares[finding]) * 499
        assert ordered[int(rank)] - 1e-6 <= float(thresholds[finding])
        assert float(thresholds[finding]) <= ordered[min(int(rank) + 1, 499)] + 1e-6


@given(st.integers(0, 99), st.integers(1, 6))
def test_adaptive_thresholds_move_as_exponential_means(seed: int, batches: int) -> None:
    sample = probabilities(seed, 40)
    adaptive = SelfAdaptive(sample)
    confidence = sum(max(row) for row in sample.tolist()) / 40
    shares = [sum(row[c] for row in sample.tolist()) / 40 for c in range(4)]
    for number in range(batches):
        batch = probabilities(seed + 1 + number)
        rows = batch.tolist()
        labels = adaptive(batch)
        confidence = MOMENTUM * confidence + (1 - MOMENTUM) * sum(map(max, rows)) / 12
        for c in range(4):
            mean = sum(row[c] for row in rows) / 12
            shares[c] = MOMENTUM * shares[c] + (1 - MOMENTUM) * mean
        expected = [share / max(shares) * confidence for share in shares]
        assert adaptive.thresholds.tolist() == pytest.approx(expected, rel=1e-4)
        assert same(labels, class_labels(batch, adaptive.thresholds))
    assert float(adaptive.thresholds.max()) == pytest.approx(confidence, rel=1e-4)


# Views


def test_a_square_is_cut_out_and_the_rest_is_left() -> None:
    given = torch.rand(600, 3, 16, 16, generator=generator()) + 1
    cut = cutout(given, generator(1))
    gone = (cut == 0).all(dim=1)
    assert torch.equal(cut[~gone[:, None].expand_as(cut)], given[~gone[:, None].expand_as(cut)])
    sides, at_edge = [], 0
    for mask in gone:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])
        height, width = int(rows.sum()), int(columns.sum())
        touching = bool(rows[0] | rows[-1] | columns[0] | columns[-1])
        at_edge += touching
        assert touching or abs(height - width) <= 1
        assert max(height, width) <= 8
        sides.append(max(height, width))
    assert max(sides) == 8 and at_edge > 100
    assert torch.equal(cut, cutout(given, generator(1)))
    # The centre lies anywhere: each corner and the middle are cut out now and then.
    assert gone.float().mean(dim=0).min() > 0.02


def site(count: int = 24, labelled: int = 6, multi_label: bool = False) -> LatentSet:
    """Latents whose first channel's level is their class, of three."""
    classes = torch.arange(count) % 3
    views = torch.randn(3, count, 2, 8, 8, generator=generator()) * 0.3
    views[:, :, 0] += (classes - 1.0).reshape(1, -1, 1, 1) * 1.5
    targets = torch.nn.functional.one_hot(classes, 3).float()
    targets[labelled:] = NAN
    halves = views.half()
    return LatentSet(
        halves[0],
        halves[:2, :labelled],
        targets,
        multi_label,
        turns_and_flips=True,
        unlabelled_views=halves[1:, labelled:],
    )


def test_a_weak_view_is_the_unlabelled_image_turned() -> None:
    data = site()
    chosen = torch.tensor([0, 5, 17, 17])
    for number, view in zip(chosen.tolist(), data.weak_views(chosen, generator()), strict=True):
        image = data.latents[6 + number].float()
        held = [image.rot90(quarter, (1, 2)).flip(axes) for quarter in range(4)
                for axes in ((), (2,))]  # fmt: skip
        assert any(torch.equal(view, one) for one in held)
    still = replace(data, turns_and_flips=False)
    assert torch.equal(still.weak_views(chosen, generator()), data.latents[6 + chosen].float())


def test_a_strong_view_is_one_of_those_kept_with_a_square_cut_out() -> None:
    data = replace(site(), turns_and_flips=False)
    assert data.unlabelled_views is not None
    chosen = torch.tensor([2] * 20)
    used = set()
    for view in data.strong_views(chosen, generator()):
        kept = view != 0
        matches = [
            bool((view == one.float())[kept].all()) for one in data.unlabelled_views[:, 2]
        ]  # fmt: skip
        assert sum(matches) == 1
        used.add(matches.index(True))
    assert used == {0, 1}


def test_views_must_be_of_the_unlabelled_images() -> None:
    data = site()
    assert data.unlabelled_views is not None
    with pytest.raises(ValueError, match="views of 17 images do not fit 18 unlabelled"):
        replace(data, unlabelled_views=data.unlabelled_views[:, 1:])
    with pytest.raises(ValueError, match="needs views"):
        replace(data, unlabelled_views=None).strong_views(torch.tensor([0]), generator())


# One round


def network(seed: int = 0, dropout: float = 0.1) -> JointUNet:
    return toy_network(3, seed, dropout)


def consistent(consistency: dict[str, object], **changes: object) -> JointTraining:
    given: dict[str, object] = {
        "labelled_batch_size": 6,
        "classification_weight": 1.0,
        "consistency": {"weight": 1.0, "batch_size": 8, **consistency},
    }
    return joint_training(**(given | changes))


class Sure(nn.Module):
    """A teacher that knows the classes, in evaluation mode; elsewhere it knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def classify(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        level = latents[:, 0].mean(dim=(1, 2))
        return self.scale * torch.stack([-level - 0.75, level * 0, level - 0.75], dim=1)


def test_the_teacher_labels_the_clean_view_for_the_strong_one() -> None:
    data, teacher = site(), Sure()
    consistency = Consistency(
        data,
        ConsistencySettings(weight=1.0, batch_size=36),
        teacher,  # type: ignore[arg-type]
        lambda logits: logits,
        None,
        generator(),
    )
    views, labels = consistency.next()
    assert teacher.training  # as it was
    assert views.shape == (36, 2, 8, 8) and not labels.isnan().any()
    truth = (views[:, 0].flatten(1).median(dim=1).values / 1.5).round() + 1
    assert (labels.argmax(dim=1) == truth).float().mean() > 0.9
    # Every unlabelled image comes twice in two passes, a third of them of each class.
    assert labels.sum(dim=0).tolist() == [12, 12, 12]


def test_the_teacher_is_labelled_by_adjusted_logits() -> None:
    consistency = Consistency(
        site(),
        ConsistencySettings(weight=1.0, batch_size=18),
        Sure(),  # type: ignore[arg-type]
        None,
        torch.tensor([0.0, 0.0, 1000.0]),
        generator(),
    )
    assert consistency.next()[1].argmax(dim=1).tolist() == [2] * 18


def test_one_pass_of_the_network_equals_three() -> None:
    model, settings = network().eval(), consistent({"batch_size": 5}, noised_fraction=0.0)
    latents = torch.randn(11, 2, 8, 8, generator=generator(1))
    targets = torch.eye(3)[torch.arange(11) % 3]
    targets[8:] = NAN
    clean = torch.zeros(6, dtype=torch.long)
    rows = {
        "classification_loss": LabelledRows(latents[:6], clean, targets[:6]),
        "consistency_loss": LabelledRows(latents[6:], clean[:5], targets[6:]),
    }
    noise, timesteps = torch.randn(4, 2, 8, 8, generator=generator(2)), torch.arange(4) * 200
    denoising = Denoising.of(PROCESS, latents[:4], timesteps, noise)
    together = joint_losses(model, JointBatch(denoising, rows, False), settings)
    alone = joint_losses(model, JointBatch(denoising, {}, False), settings)
    torch.testing.assert_close(together["diffusion_loss"], alone["diffusion_loss"])
    for name, row in rows.items():
        alone = joint_losses(model, JointBatch(None, {name: row}, False), settings)
        torch.testing.assert_close(together[name], alone[name], rtol=1e-5, atol=1e-6)
    # Two of five rows have a label, and the sum is divided by five.
    surprise = -model.classify(latents[6:8]).log_softmax(dim=1)
    expected = (surprise * targets[6:8]).sum() / 5
    torch.testing.assert_close(together["consistency_loss"], expected, rtol=1e-4, atol=1e-6)
    denoised = together.pop("diffusion_loss")
    total = total_loss(together, settings)
    other = consistent({"weight": 0.5, "batch_size": 5}, classification_weight=3.0)
    weighted = total_loss(together, other)
    torch.testing.assert_close(total, together["classification_loss"] + expected)
    with_it = total_loss({**together, "diffusion_loss": denoised}, settings)
    torch.testing.assert_close(with_it, total + denoised)
    torch.testing.assert_close(weighted, 3 * together["classification_loss"] + 1.5 * expected)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("teacher", [None, 1])
def test_a_round_with_every_part_on_is_determined_by_its_seed(
    multi_label: bool, teacher: int | None
) -> None:
    counts = LabelCounts(torch.tensor([3.0, 2.0, 1.0]), torch.full((3,), 6.0))
    settings = consistent(
        {"thresholds": "adaptive"},
        logit_adjustment=1.0,
        diffusion_weight=0.5,
        proximal_weight=0.01,
        noised_fraction=0.5,
    )

    def trained(seed: int) -> tuple[dict[str, Tensor], LocalReport]:
        model = network()
        teaching = network(teacher) if teacher else None
        torch.manual_seed(seed + 1000)
        report = train_toy(
            model,
            site(multi_label=multi_label),
            settings,
            seed=seed,
            counts=counts,
            teacher=teaching,
        )
        return model.state_dict(), report

    (one, report), (again, _), (other, _) = trained(1), trained(1), trained(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert (report.steps, report.images_seen, report.labelled_seen) == (12, 48, 6)
    parts = {"loss", "diffusion_loss", "classification_loss", "consistency_loss", "pseudo_labelled"}
    assert set(report.sums) == parts
    assert 0 < report.means()["pseudo_labelled"] <= 1


def test_unlabelled_images_teach_the_teachers_labels() -> None:
    """Without one label, and without the diffusion loss: all that is learnt is the teacher's."""
    data, model = site(labelled=0), network(dropout=0.0)
    settings = consistent(
        {"teacher": "ema"}, diffusion_weight=0.0, local_epochs=15, learning_rate=3e-3
    )
    report = train_toy(model, data, settings, teacher=Sure())  # type: ignore[arg-type]
    assert (report.images_seen, report.labelled_seen) == (24, 0)
    assert set(report.sums) == {"loss", "consistency_loss", "pseudo_labelled"}
    with torch.no_grad():
        found = model.eval().classify(data.latents.float()).argmax(dim=1)
    assert (found == torch.arange(24) % 3).float().mean() > 0.9


def test_without_confidence_nothing_is_taught() -> None:
    """Beside a teacher that is never sure, unlabelled rows change no weight of the classifier."""

    class Unsure(Sure):
        def classify(self, latents: Tensor, timesteps: Tensor) -> Tensor:
            return super().classify(latents, timesteps) * 0

    report = train_toy(network(), site(), consistent({}), teacher=Unsure())  # type: ignore[arg-type]
    assert report.means()["consistency_loss"] == 0 == report.means()["pseudo_labelled"]


def test_a_site_without_unlabelled_images_trains_as_without_consistency() -> None:
    def trained(weight: float) -> dict[str, Tensor]:
        model = network()
        train_toy(model, site(12, 12), consistent({"weight": weight}))
        return model.state_dict()

    on, off = trained(1.0), trained(0.0)
    assert all(torch.equal(on[name], off[name]) for name in on)
