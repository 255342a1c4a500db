"""The parts of the joint objective against closed forms and slow references."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.in_one_call import InOneCall
from helpers.toy import generator, joint_training
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.loss import JointBatch, LabelledRows, joint_losses

NAN = float("nan")


def counts(positive: list[int], known: list[int]) -> LabelCounts:
    return LabelCounts(torch.tensor(positive).float(), torch.tensor(known).float())


# Logit adjustment


def test_sites_counts_are_added_up() -> None:
    sites: list[dict[str, int | list[int]]] = [
        {"labelled": 5, "per_class": [3, 2], "known_per_class": [5, 4]},
        {"labelled": 0, "per_class": [0, 0], "known_per_class": [0, 0]},
        {"labelled": 9, "per_class": [1, 0], "known_per_class": [9, 9]},
    ]
    added = LabelCounts.of_arrays(LabelCounts.of_census(sites).arrays())
    assert added.positive.tolist() == [4, 2] and added.known.tolist() == [14, 13]


@given(st.lists(st.integers(0, 500), min_size=2, max_size=9))
def test_exclusive_classes_share_one_and_none_is_impossible(images: list[int]) -> None:
    given = counts(images, [sum(images)] * len(images))
    prevalence = given.prevalence(multi_label=False)
    assert float(prevalence.sum()) == pytest.approx(1, abs=1e-5)
    assert float(prevalence.min()) > 0
    assert given.log_prior(multi_label=False).isfinite().all()
    order = [sorted(images).index(count) for count in images]
    assert [sorted(prevalence.tolist()).index(p) for p in prevalence.tolist()] == order


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_findings_prior_is_its_log_odds(positive: int, negative: int) -> None:
    [prior] = counts([positive], [positive + negative]).log_prior(multi_label=True).tolist()
    assert prior == pytest.approx(math.log((positive + 1) / (negative + 1)), abs=1e-4)


class Constant(InOneCall):
    """A classifier that sees nothing: the same logits for every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(
        self, given: Tensor, timesteps: Tensor, denoise: slice, classify: slice
    ) -> tuple[None, Tensor]:
        return None, self.logits.expand(len(given[classify]), -1)


def classified(model: Constant, targets: Tensor, multi_label: bool, shift: Tensor) -> Tensor:
    """The mean classification loss of the targets, with adjusted logits."""
    timesteps = torch.zeros(len(targets), dtype=torch.long)
    rows = LabelledRows(torch.zeros(len(targets), 1, 2, 2), timesteps, targets)
    batch = JointBatch(None, {"classification_loss": rows}, multi_label, shift)
    settings = joint_training(labelled_batch_size=len(targets))
    return joint_losses(model, batch, settings)["classification_loss"]  # type: ignore[arg-type]


def gradient(model: Constant, targets: Tensor, multi_label: bool, tau: float) -> Tensor:
    """Of the classification loss on labels that occur as often as the prior says."""
    prevalence = targets.mean(dim=0)
    prior = prevalence.logit() if multi_label else prevalence.log()
    loss = classified(model, targets, multi_label, tau * prior)
    [found] = torch.autograd.grad(loss, [model.logits])
    return found


@pytest.mark.parametrize("multi_label", [True, False])
def test_adjusted_logits_of_a_blind_classifier_favour_no_class(multi_label: bool) -> None:
    """The Bayes-optimal logits are log p(y|x) - τ log π: with τ = 1 all equal, with 0 log π."""
    classes = torch.tensor([0] * 12 + [1] * 3 + [2])
    targets = F.one_hot(classes, 3).float()
    if multi_label:
        targets[:4, 1] = 1.0
    prevalence = targets.mean(dim=0)
    learnt = prevalence.logit() if multi_label else prevalence.log()
    for tau, optimum in ((1.0, torch.zeros(3)), (0.0, learnt), (0.5, learnt / 2)):
        at_optimum = gradient(Constant(optimum.clone()), targets, multi_label, tau)
        assert at_optimum.abs().max() < 1e-6
        elsewhere = optimum + torch.tensor([0.5, 0.0, 0.0])
        assert gradient(Constant(elsewhere), targets, multi_label, tau).abs().max() > 1e-2


def test_the_adjusted_loss_is_the_cross_entropy_with_margins_between_classes() -> None:
    """log(1 + Σ_{y' ≠ y} (π_y' / π_y)^τ exp(f_y' - f_y)), eq. 10 in its other form."""
    logits = torch.randn(4, generator=generator())
    given = counts([50, 30, 1, 0], [81] * 4)
    prior, tau = given.prevalence(multi_label=False), 1.3
    shift = tau * given.log_prior(multi_label=False)
    for label in range(4):
        others = [other for other in range(4) if other != label]
        expected = math.log(
            1
            + sum(
                float((prior[other] / prior[label]) ** tau * (logits[other] - logits[label]).exp())
                for other in others
            )
        )
        targets = F.one_hot(torch.tensor([label]), 4).float()
        loss = classified(Constant(logits.clone()), targets, False, shift)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
