"""DeLong's interval from counts is that from scores."""

import torch
from torch import Tensor

from mediffusion_core.evaluation.classification import threshold_counts
from mediffusion_core.evaluation.delong import delong_interval


def from_scores(positives: Tensor, negatives: Tensor) -> tuple[float, float]:
    """The interval by the comparisons of all pairs, ties counting one half."""
    pairs = (positives[:, None] > negatives).double() + (positives[:, None] == negatives) / 2
    variance = pairs.mean(dim=1).var() / len(positives) + pairs.mean(dim=0).var() / len(negatives)
    area, half = float(pairs.mean()), 1.959964 * float(variance.sqrt())
    return max(0.0, area - half), min(1.0, area + half)


def test_the_interval_is_that_of_all_pairs_of_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(200, 3, generator=generator) < 0.3).double()
    scores = (torch.randn(200, 3, generator=generator).double() + targets).mul(4).round().div(4)
    counts = threshold_counts(scores, targets, torch.unique(scores))
    for bounds, own, target in zip(delong_interval(counts), scores.T, targets.T, strict=True):
        expected = from_scores(own[target == 1], own[target == 0])
        torch.testing.assert_close(bounds, torch.tensor(expected).double())


def test_a_class_without_positives_has_no_interval() -> None:
    counts = threshold_counts(torch.zeros(4, 1), torch.zeros(4, 1), torch.tensor([0.0]))
    assert delong_interval(counts).isnan().all()
