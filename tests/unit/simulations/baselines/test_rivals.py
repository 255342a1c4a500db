"""Losses and averages of FreeMatch, FedIRM, RSCFed and CBAFed, against slow references."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simulations.baselines.semi_supervised.cbafed import (
    BalancedServer,
    CBAFed,
    balanced_labels,
    balanced_thresholds,
)
from simulations.baselines.semi_supervised.fedirm import (
    FedIRM,
    RelationServer,
    add_dropout,
    dropout_logits,
    relation_loss,
    relation_matrix,
)
from simulations.baselines.semi_supervised.fixmatch import Alignment, FixMatch
from simulations.baselines.semi_supervised.rscfed import ConsensusServer
from simulations.baselines.semi_supervised.server import Update
from simulations.baselines.semi_supervised.settings import (
    CBAFedSettings,
    ConsistencySettings,
    FedIRMSettings,
    RSCFedSettings,
    SemiSupervised,
)
from simulations.baselines.settings import BaselineSettings
from simulations.baselines.task import BaselineTask

SHARES = torch.tensor([0.7, 0.28, 0.02])
GENERATOR = torch.Generator().manual_seed(0)


def task_of(consistency: SemiSupervised) -> BaselineTask:
    """Ten rounds of exclusive classes, without augmentation."""
    return BaselineTask(BaselineSettings(rounds=10, consistency=consistency), "none", False, "fp32")


class Fixed(nn.Module):
    """The same logits for any image, (C,), from a last layer."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(1, len(logits))
        self.fc.weight.data.zero_()
        self.fc.bias.data = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.mean(dim=(1, 2, 3))[:, None])
        return logits


def test_aligned_probabilities_have_the_distribution_of_the_labels() -> None:
    alignment = Alignment(SHARES)
    biased = torch.tensor([[0.1, 0.6, 0.3], [0.3, 0.4, 0.3]])
    mean = SHARES.clone()
    for _ in range(3):
        found = alignment(biased)
        mean = 0.99 * mean + 0.01 * biased.mean(dim=0)
    expected = biased * SHARES / mean
    torch.testing.assert_close(found, expected / expected.sum(dim=1, keepdim=True))
    for _ in range(2000):
        found = alignment(biased[:1])
    torch.testing.assert_close(found[0], SHARES, atol=1e-3, rtol=0)


def test_adaptive_thresholds_label_a_class_that_is_seldom_predicted() -> None:
    """Below the fixed threshold, 0.6 is enough once the network is seldom surer."""
    network = Fixed([math.log(0.6), math.log(0.3), math.log(0.1)])
    images = torch.rand(4, 1, 8, 8)
    losses = []
    for thresholds in ("fixed", "adaptive"):
        chosen = ConsistencySettings.model_validate({"thresholds": thresholds})
        objective = FixMatch(task_of(chosen), chosen, SHARES)
        _, loss = objective.prepare(network, images, GENERATOR)
        losses.append(float(loss(network(images)).detach()))
    assert losses == pytest.approx([0.0, -math.log(0.6)], abs=1e-5)


def test_a_relation_matrix_is_the_softmax_of_mean_logits() -> None:
    logits = torch.randn(12, 3, generator=GENERATOR)
    classes = torch.tensor([0, 2] * 6)
    found = relation_matrix(logits, F.one_hot(classes, 3).float(), 2.0)
    for one in (0, 2):
        rows = [logits[place] for place in range(12) if int(classes[place]) == one]
        mean = torch.stack(rows).mean(dim=0)
        exponentials = [math.exp(float(value) / 2) for value in mean]
        expected = [value / sum(exponentials) for value in exponentials]
        assert found[one].tolist() == pytest.approx(expected, rel=1e-5)
    assert bool(found[1].isnan().all())


def test_the_relation_loss_is_the_divergence_both_ways_over_known_classes() -> None:
    first, second = (torch.randn(4, 4, generator=GENERATOR).softmax(dim=1) for _ in range(2))
    first[1], second[3] = torch.nan, torch.nan
    expected = sum(
        float(F.kl_div(a.log(), b, reduction="sum"))
        for row in (0, 2)
        for a, b in ((first[row], second[row]), (second[row], first[row]))
    )
    assert float(relation_loss(first, second)) == pytest.approx(expected / 8, rel=1e-4)
    assert float(relation_loss(first, first)) == 0.0


def test_unreliable_images_have_no_relations() -> None:
    settings = FedIRMSettings(dropout=0.0)
    images = torch.rand(4, 1, 8, 8)
    extra = {}
    for name, logits in (("sure", [4.0, 0.0, 0.0]), ("unsure", [0.1, 0.0, 0.0])):
        network, objective = Fixed(logits), FedIRM(task_of(settings), settings, 3)
        objective.begin_round(10)
        objective.relations = torch.eye(3) * 0.7 + 0.1
        views, loss = objective.prepare(network, images, GENERATOR)
        extra[name] = float(loss(network(views)).detach())  # teacher and student agree
    assert extra["unsure"] == 0.0
    sure = torch.full((3, 3), torch.nan)
    sure[0] = torch.tensor([2.0, 0.0, 0.0]).softmax(dim=0)
    assert extra["sure"] == pytest.approx(
        15 * float(relation_loss(sure, torch.eye(3) * 0.7 + 0.1)), rel=1e-4
    )


def test_passes_through_the_last_layer_alone_are_passes_of_the_network() -> None:
    network = Fixed([0.0, 1.0])
    network.fc.weight.data.fill_(1.0)
    add_dropout(network, 0.5)
    network.train()
    images = torch.rand(500, 1, 4, 4) + 1
    torch.manual_seed(1)
    passes = dropout_logits(network, images, 2)
    torch.manual_seed(1)
    network(images)
    expected = torch.stack([network(images) for _ in range(2)])
    torch.testing.assert_close(passes, expected)
    assert not torch.equal(passes[0], passes[1])
    network.eval()
    torch.testing.assert_close(
        network(images), F.linear(images.mean((2, 3)), *network.fc.parameters())
    )


def test_relations_are_averaged_over_the_sites_that_have_the_class() -> None:
    settings = FedIRMSettings()
    sites = [FedIRM(task_of(settings), settings, 2) for _ in range(3)]
    server = RelationServer(sites)
    logits = torch.randn(6, 2, generator=GENERATOR)
    both, first = torch.eye(2).repeat(3, 1), torch.tensor([[1.0, 0.0]]).expand(6, 2)
    for part in (slice(0, 2), slice(2, 6)):  # in batches
        sites[0].observe(logits[part], both[part])
    sites[1].observe(logits, first)
    server.finish({}, 1)
    one, other = (relation_matrix(logits, labels, 2.0) for labels in (both, first))
    expected = torch.stack([(one[0] + other[0]) / 2, one[1]])
    torch.testing.assert_close(sites[2].relations, expected)
    for site in sites:
        site.begin_round(1)
    sites[0].observe(logits, first)
    server.finish({}, 2)
    torch.testing.assert_close(sites[2].relations, torch.stack([other[0], one[1]]))


def updates_of(values: list[float], images: list[float]) -> list[Update]:
    """Of two parameters each."""
    return [
        Update(site, {"a": torch.full((2,), value), "b": torch.tensor([-value])}, {}, weight)
        for site, (value, weight) in enumerate(zip(values, images, strict=True))
    ]


def test_distant_sites_weigh_less_and_labelled_ones_more() -> None:
    values, images = [1.0, 2.0, 5.0], [10.0, 20.0, 10.0]
    server = ConsensusServer(RSCFedSettings(distance_scale=2.0), [True, False, False], 10, seed=0)
    found = server.weights(updates_of(values, images))
    mean = sum(value * count for value, count in zip(values, images, strict=True)) / 40
    ratios = [
        (math.sqrt(2) + 1) * abs(value - mean) / count
        for value, count in zip(values, images, strict=True)
    ]
    expected = [
        count * math.exp(-2 * ratio / statistics.mean(ratios)) * (6 if site == 0 else 1)
        for site, (count, ratio) in enumerate(zip(images, ratios, strict=True))
    ]
    assert found == pytest.approx(expected, rel=1e-5)
    without_step = server.weights(updates_of([1.0, 2.0, 9.0], [10.0, 20.0, 0.0]))
    assert without_step[2] == 0.0 and all(without_step[:2])


def test_subsets_are_drawn_anew_in_each_round_after_labels_alone() -> None:
    settings = RSCFedSettings(warm_up=0.2, subset_share=0.3)
    server = ConsensusServer(settings, [True] * 10, rounds=10, seed=0)
    assert server.groups(2) == [list(range(10))]
    drawn = [server.groups(number) for number in range(3, 11)]
    assert all(len(groups) == 3 for groups in drawn)
    assert all(len(set(group)) == 3 for groups in drawn for group in groups)
    assert len({tuple(group) for groups in drawn for group in groups}) > 10
    again = ConsensusServer(settings, [True] * 10, rounds=10, seed=0)
    assert again.groups(5) == server.groups(5)


def test_frequent_classes_need_more_confidence_and_rare_ones_may_come_second() -> None:
    settings = CBAFedSettings()
    thresholds = balanced_thresholds(SHARES, settings)
    deviation = statistics.stdev(SHARES.tolist())
    expected = [min(0.9, share + 0.84 - deviation) for share in SHARES.tolist()]
    assert thresholds.tolist() == pytest.approx(expected)
    probabilities = torch.tensor(
        [
            [0.95, 0.04, 0.01],
            [0.8, 0.15, 0.05],
            [0.8, 0.05, 0.15],
            [0.1, 0.1, 0.8],
            [0.2, 0.79, 0.01],
        ]
    )
    labels = balanced_labels(probabilities, SHARES, settings)
    nothing = [torch.nan] * 3
    wanted = torch.tensor([[1, 0, 0], nothing, [0, 0, 1], [0, 0, 1], [0, 1, 0]])
    torch.testing.assert_close(labels, wanted, equal_nan=True)


def test_pseudo_labels_stay_those_of_the_global_weights() -> None:
    settings = CBAFedSettings()
    objective = CBAFed(task_of(settings), settings, SHARES)
    objective.begin_round(10)
    images, trained = torch.rand(4, 1, 8, 8), Fixed([0.0, 5.0, 0.0])  # would label otherwise
    objective.prepare(Fixed([5.0, 0.0, 0.0]), images, GENERATOR)
    views, loss = objective.prepare(trained, images, GENERATOR)
    assert objective.counts.tolist() == [8.0, 0.0, 0.0]
    expected = -math.log(1 / (2 + math.exp(5)))
    assert float(loss(trained(views)).detach()) == pytest.approx(expected, rel=1e-5)
    objective.begin_round(10)
    views, loss = objective.prepare(Fixed([0.1, 0.0, 0.0]), images, GENERATOR)
    assert float(loss(trained(views)).detach()) == 0.0 == float(objective.counts.sum())


def test_the_server_balances_by_labels_and_pseudo_labels_and_keeps_earlier_weights() -> None:
    settings = CBAFedSettings(warm_up=0.0, residual_every=2)
    sites = [CBAFed(task_of(settings), settings, SHARES) for _ in range(2)]
    labels = [torch.tensor([6.0, 2.0, 0.0]), torch.zeros(3)]
    server = BalancedServer(settings, sites, labels, num_unlabelled=[0, 16])
    for site in sites:
        site.begin_round(1)
    sites[1].counts += torch.tensor([0.0, 3.0, 1.0])
    sites[1].seen = 8  # half of its images
    assert server.weights(updates_of([0.0, 0.0], [8.0, 8.0])) == [80.0, 4.0]
    assert server.finish({"a": torch.tensor([1.0])}, 1) == {"a": torch.tensor([1.0])}
    assert sites[0].shares.tolist() == pytest.approx([6 / 16, 8 / 16, 2 / 16])
    assert server.finish({"a": torch.tensor([4.0])}, 2)["a"].tolist() == [2.5]
    assert server.finish({"a": torch.tensor([9.0])}, 3)["a"].tolist() == [9.0]
    assert server.finish({"a": torch.tensor([3.5])}, 4)["a"].tolist() == [3.0]
