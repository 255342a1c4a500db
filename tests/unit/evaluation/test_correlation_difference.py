"""The correlation difference against NumPy and in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.evaluation.correlation_difference import (
    correlation_difference,
    label_correlations,
)

NAN = float("nan")


def removals(index: list[int], multi_label: bool = True) -> Target:
    return Target(torch.tensor(index), torch.zeros(len(index), dtype=torch.bool), multi_label)


def measured(before: Tensor, after: Tensor, target: Target, labels: Tensor) -> Estimate:
    groups = [str(row) for row in range(len(before))]
    return correlation_difference(before, after, target, labels, groups, 20, seed=0)


INDEPENDENT = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TOGETHER = torch.tensor([[0.0, 0.0], [1.0, 1.0]])


def test_findings_that_change_as_they_occur_have_no_difference() -> None:
    """The first finding is removed twice and added twice; the second one goes with it, or stays."""
    first = torch.tensor([True, True, False, False])
    alone = torch.stack([first, torch.tensor([True, False, True, False])], dim=1)
    both = torch.stack([first, first], dim=1)
    target = removals([0] * 4)
    turned = torch.stack([~first, alone[:, 1]], dim=1)
    assert measured(alone, turned, target, INDEPENDENT).value == pytest.approx(0)
    assert measured(alone, turned, target, TOGETHER).value == pytest.approx(1)
    assert measured(both, ~both, target, TOGETHER).value == pytest.approx(0)
    assert measured(both, ~both, target, INDEPENDENT).value == pytest.approx(1)
    opposite = torch.stack([first, ~first], dim=1)
    assert measured(opposite, ~opposite, target, TOGETHER).value == pytest.approx(2)


def test_without_any_change_the_finding_differs_from_itself() -> None:
    same = torch.ones(4, 2, dtype=torch.bool)
    assert measured(same, same, removals([0] * 4), INDEPENDENT).value == pytest.approx(1)
    assert measured(same, same, removals([0] * 4), TOGETHER).value == pytest.approx(2)


@given(st.integers(0, 99))
@hypothesis_settings(max_examples=10)
def test_against_numpy(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.rand(12, 3, generator=generator) > 0.5 for _ in range(2))
    labels = (torch.rand(30, 3, generator=generator) > 0.6).float()
    index = [0, 2] * 6
    slow = []
    for query in (0, 2):
        changes = (after.int() - before.int()).numpy()[query // 2 :: 2]
        for other in range(3):
            with np.errstate(invalid="ignore"):
                made = np.corrcoef(changes[:, query], changes[:, other])[0, 1]
                real = np.corrcoef(labels[:, query], labels[:, other])[0, 1]
            slow.append(abs(np.nan_to_num(made) - np.nan_to_num(real)))
    found = measured(before, after, removals(index), labels)
    assert found.value == pytest.approx(sum(slow) / 2, abs=1e-5)
    assert found.count == 12 and found.low <= found.high


def test_missing_labels_are_left_out_pair_by_pair() -> None:
    labels = torch.tensor([[0.0, 0.0, NAN], [1.0, 1.0, NAN], [1.0, NAN, 0.0], [0.0, NAN, 1.0]])
    assert label_correlations(labels)[0].tolist() == pytest.approx([1, 1, -1])
    assert label_correlations(labels)[1, 2] == 0  # no image has both


def test_exclusive_classes_have_no_correlation_difference() -> None:
    made = torch.ones(4, 2, dtype=torch.bool)
    found = measured(made, made, removals([0] * 4, multi_label=False), INDEPENDENT)
    assert math.isnan(found.value) and found.count == 0
