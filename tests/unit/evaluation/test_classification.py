"""Pooled, exact and bootstrapped areas under the ROC curve."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, MultilabelAUROC
from torchmetrics.functional.classification import multilabel_auroc

from mediffusion_core.evaluation import (
    auc_from_counts,
    bootstrap_auc,
    bootstrap_counts,
    class_scores,
    exact_auc,
    interval,
    logit_thresholds,
    macro,
    threshold_counts,
)

NAN = float("nan")


def draw(n: int, c: int, seed: int, prevalence: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, c, generator=generator) < prevalence).float()
    scores = torch.randn(n, c, generator=generator) + targets
    return scores, targets


def pairwise_auc(scores: Tensor, targets: Tensor) -> float:
    """The definition: the share of pairs in which the positive scores higher."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[targets == 1].tolist()
        for n in scores[targets == 0].tolist()
    ]
    return sum(wins) / len(wins) if wins else NAN


@given(
    rows=st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 1.0, NAN])), min_size=1, max_size=40
    )
)
def test_exact_auc_is_the_share_of_ordered_pairs_with_ties_and_missing_labels(
    rows: list[tuple[int, float]],
) -> None:
    scores = torch.tensor([[float(score)] for score, _ in rows])
    targets = torch.tensor([[target] for _, target in rows])
    expected = pairwise_auc(scores[:, 0], targets[:, 0])
    # Integer scores with a threshold on each: binning loses nothing.
    binned = auc_from_counts(threshold_counts(scores, targets, torch.arange(-3.0, 4.0)))
    assert float(exact_auc(scores, targets)) == pytest.approx(expected, nan_ok=True)
    assert float(binned) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([1000, 4000]),
    centre=st.floats(-7.0, -2.0),
    scale=st.floats(1.0, 6.0),
    separation=st.floats(0.0, 3.0),
)
def test_pooled_area_stands_within_0_002_of_exact_at_one_percent_prevalence(
    seed: int, n: int, centre: float, scale: float, separation: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.zeros(n, 1)
    targets[: n // 100] = 1.0
    scores = centre + scale * torch.randn(n, 1, generator=generator) + separation * targets
    pooled = auc_from_counts(threshold_counts(scores, targets, logit_thresholds()))
    assert abs(float(pooled - exact_auc(scores, targets))) < 0.002


@pytest.mark.parametrize("seed", range(5))
def test_pooled_area_holds_where_every_logit_is_at_minus_six(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.zeros(1000, 1)
    targets[:10] = 1.0
    # Triangular within -6 ± 1, the whole model between two ticks of an axis.
    scores = -7.0 + torch.rand(1000, 2, generator=generator).sum(dim=1, keepdim=True)
    scores = scores + 0.3 * targets
    pooled = auc_from_counts(threshold_counts(scores, targets, logit_thresholds()))
    assert abs(float(pooled - exact_auc(scores, targets))) < 0.002


def test_default_gaps_hold_the_bound_wherever_a_unit_normal_is_centred() -> None:
    thresholds = logit_thresholds()
    assert thresholds[0] == pytest.approx(-40.0)
    assert thresholds[-1] == pytest.approx(40.0)
    # Half the largest share of negatives in a gap, the density of a unit normal being 0.399.
    near = thresholds[:-1].abs() <= 6.0
    assert 0.399 * float(thresholds.diff()[near].max()) / 2 < 0.0023


def test_counts_add_up_over_sites_even_where_a_site_has_one_class() -> None:
    scores, targets = draw(300, 3, seed=0)
    targets[torch.rand(300, 3, generator=torch.Generator().manual_seed(1)) < 0.2] = NAN
    targets[:80, 1] = 0.0
    thresholds = logit_thresholds(50)
    sites = [slice(0, 80), slice(80, 100), slice(100, 300)]
    summed = sum(
        (threshold_counts(scores[site], targets[site], thresholds) for site in sites),
        start=torch.zeros(3, 50, 2, 2, dtype=torch.int64),
    )
    assert torch.equal(summed, threshold_counts(scores, targets, thresholds))
    assert summed.sum(dim=(2, 3)).eq((~targets.isnan()).sum(dim=0)[:, None]).all()


def test_counts_are_the_confusion_matrix_at_each_threshold() -> None:
    scores, targets = draw(200, 2, seed=2)
    thresholds = torch.tensor([-1.0, 0.0, float(scores[7, 1])])
    counts = threshold_counts(scores, targets, thresholds)
    for c in range(2):
        for t, threshold in enumerate(thresholds):
            predicted = scores[:, c] >= threshold
            for target in (0, 1):
                for prediction in (0, 1):
                    both = (targets[:, c] == target) & (predicted == bool(prediction))
                    assert counts[c, t, target, prediction] == both.sum()


def binned(scores: Tensor, targets: Tensor, thresholds: Tensor) -> MultilabelAUROC:
    """torchmetrics' binned AUROC, which takes probabilities."""
    metric = MultilabelAUROC(
        scores.shape[1], average="none", thresholds=thresholds.sigmoid(), ignore_index=-1
    )
    metric.update(scores.sigmoid(), targets.nan_to_num(-1).long())
    return metric


def test_counts_and_their_area_are_those_of_torchmetrics() -> None:
    scores, targets = draw(500, 4, seed=3)
    scores, thresholds = scores.double(), logit_thresholds(101, limit=30.0)
    targets[::6, 0] = NAN
    counts, theirs = (
        threshold_counts(scores, targets, thresholds),
        binned(scores, targets, thresholds),
    )
    assert torch.equal(counts.transpose(0, 1), theirs.confmat)
    assert torch.allclose(auc_from_counts(counts), theirs.compute().double(), atol=1e-6)


def test_counts_of_torchmetrics_do_not_add_up_over_sites_that_send_logits() -> None:
    """Why the counts are our own: it takes what lies within [0, 1] for probabilities."""
    scores, targets = (
        torch.tensor([[0.2], [0.4], [-3.0], [3.0]]),
        torch.tensor([[0], [1], [0], [1]]),
    )
    thresholds = torch.tensor([0.3, 0.6])

    def theirs(rows: slice) -> Tensor:
        metric = BinaryAUROC(thresholds=thresholds)
        metric.update(scores[rows, 0], targets[rows, 0])
        return metric.confmat

    assert not torch.equal(theirs(slice(0, 2)) + theirs(slice(2, 4)), theirs(slice(0, 4)))
    sites = [
        threshold_counts(scores[rows], targets[rows].float(), thresholds.logit())
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert torch.equal((sites[0] + sites[1])[0], theirs(slice(0, 4)))


def test_the_exact_area_is_that_of_torchmetrics() -> None:
    scores, targets = draw(500, 4, seed=8)
    scores = scores.round(decimals=1)  # ties
    targets[::6, 0] = NAN
    theirs = multilabel_auroc(
        scores.sigmoid(), targets.nan_to_num(-1).long(), 4, average="none", ignore_index=-1
    )
    assert torch.allclose(exact_auc(scores, targets), theirs.double(), atol=1e-6)


def test_scores_beyond_the_last_threshold_keep_the_end_points() -> None:
    scores = torch.tensor([[50.0], [60.0], [-50.0], [-60.0]])
    targets = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    # Both of the upper two tie, both of the lower two lose: (0.5 + 1 + 1) / 3.
    pooled = auc_from_counts(threshold_counts(scores, targets, logit_thresholds()))
    assert float(pooled) == pytest.approx(2.5 / 3)


def test_class_without_both_targets_has_no_area_and_leaves_the_macro() -> None:
    scores, targets = draw(60, 4, seed=4)
    targets[:, 0], targets[:, 1], targets[:, 2] = 0.0, 1.0, NAN
    pooled = auc_from_counts(threshold_counts(scores, targets, logit_thresholds()))
    for auc in (exact_auc(scores, targets), pooled):
        assert auc.isnan().tolist() == [True, True, True, False]
        assert macro(auc) == pytest.approx(float(auc[3]))
    assert math.isnan(macro(torch.tensor([NAN, NAN])))


def test_exclusive_scores_are_the_logit_of_the_softmax() -> None:
    logits = 2.0 * torch.randn(30, 5, dtype=torch.float64)
    expected = logits.softmax(dim=1).logit()
    assert torch.allclose(class_scores(logits, multi_label=False), expected)
    assert torch.equal(class_scores(logits, multi_label=True), logits)


def test_exclusive_scores_do_not_saturate_into_ties() -> None:
    logits = torch.tensor([[40.0, 0.0, 0.0], [41.0, 0.0, 0.0]])
    assert logits.softmax(dim=1)[:, 0].logit().isinf().all()
    first = class_scores(logits, multi_label=False)[:, 0]
    assert first.tolist() == pytest.approx([40.0 - math.log(2), 41.0 - math.log(2)], abs=1e-4)
    with pytest.raises(ValueError, match="at least 2"):
        class_scores(logits[:, :1], multi_label=False)


def test_weights_repeat_samples() -> None:
    scores, targets = draw(50, 2, seed=5)
    targets[::7, 0] = NAN
    weights = torch.arange(50) % 4
    thresholds = logit_thresholds(30)
    repeated = threshold_counts(
        scores.repeat_interleave(weights, dim=0),
        targets.repeat_interleave(weights, dim=0),
        thresholds,
    )
    assert torch.equal(threshold_counts(scores, targets, thresholds, weights), repeated)


def test_bootstrap_draws_whole_patients_and_as_many_as_there_are() -> None:
    # One-hot targets on a class per patient show how often each patient was drawn.
    sizes = torch.tensor([1, 2, 3, 4, 5])
    patients = torch.arange(5).repeat_interleave(sizes)
    targets = torch.nn.functional.one_hot(patients, 5).float()
    counts = bootstrap_counts(
        torch.zeros(15, 5), targets, [f"p{p}" for p in patients], torch.tensor([0.0]), 64, seed=0
    )
    images = counts[:, :, 0, 1, 1]  # (B, 5)
    assert (images % sizes == 0).all()
    draws = images // sizes
    assert (draws.sum(dim=1) == 5).all()
    assert len(draws.unique(dim=0)) > 32
    assert 0.7 < float(draws.double().mean(dim=0).min()) <= float(draws.max())


def test_bootstrap_counts_match_areas_of_explicitly_repeated_patients() -> None:
    scores, targets = draw(90, 2, seed=6)
    scores = scores.round(decimals=1)
    targets[::9, 1] = NAN
    patients = torch.arange(90) // 2
    areas = bootstrap_auc(scores, targets, patients, num_bootstraps=8, seed=3)
    presence = torch.nn.functional.one_hot(patients, 45).float()
    first_images = torch.arange(0, 90, 2)
    drawn = bootstrap_counts(
        torch.zeros(90, 45), presence, patients, torch.tensor([0.0]), 8, seed=3
    )[:, :, 0, 1, 1]
    for replicate in range(8):
        weights = (drawn[replicate] // 2)[patients]
        assert weights[first_images].sum() == 45
        rows = torch.arange(90).repeat_interleave(weights)
        expected = exact_auc(scores[rows], targets[rows])
        assert torch.allclose(areas[replicate], expected)
    ticks = torch.arange(-60, 61).double() / 10 - 0.05
    binned = auc_from_counts(bootstrap_counts(scores, targets, patients, ticks, 8, seed=3))
    assert torch.allclose(binned, areas)


def test_bootstrap_is_seeded_and_leaves_the_global_generator_alone() -> None:
    scores, targets = draw(40, 2, seed=7)
    before = torch.get_rng_state()
    names = [f"p{i % 11}" for i in range(40)]
    one = bootstrap_auc(scores, targets, names, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, bootstrap_auc(scores, targets, names, 5, seed=1))
    assert not torch.equal(one, bootstrap_auc(scores, targets, names, 5, seed=2))


def test_bootstrap_interval_covers_the_area_of_the_population() -> None:
    # A unit normal against one shifted by d has the area Φ(d / √2).
    population = 0.5 * (1.0 + math.erf(1.0 / 2.0))
    covered = 0
    for seed in range(40):
        scores, targets = draw(200, 1, seed)
        low, high = interval(bootstrap_auc(scores, targets, torch.arange(200), 100, seed=0))
        covered += low <= population <= high
    # Binomial(40, 0.95) stands below 32 with a probability of 3e-4.
    assert covered >= 32


def test_site_without_patients_counts_zero() -> None:
    empty = torch.zeros(0, 3)
    counts = bootstrap_counts(empty, empty, [], logit_thresholds(10), 4, seed=0)
    assert counts.shape == (4, 3, 10, 2, 2)
    assert not counts.any()
    assert threshold_counts(empty, empty, logit_thresholds(10)).shape == (3, 10, 2, 2)
    assert exact_auc(empty, empty).isnan().all()


def test_interval_ignores_replicates_without_an_area() -> None:
    values = torch.cat([torch.arange(101.0), torch.tensor([NAN, math.inf])])
    assert interval(values, level=0.9) == pytest.approx((5.0, 95.0))
    assert all(math.isnan(end) for end in interval(torch.tensor([NAN])))


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 1), "both be"),
        (torch.zeros(3), torch.zeros(3), "both be"),
        (torch.full((3, 1), NAN), torch.zeros(3, 1), "diverged"),
        (torch.zeros(3, 1), torch.full((3, 1), -1.0), "0, 1, or nan"),
    ],
)
def test_wrong_input_is_refused(scores: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        threshold_counts(scores, targets, logit_thresholds(5))
    with pytest.raises(ValueError, match=message):
        exact_auc(scores, targets)


def test_groups_must_fit_the_samples() -> None:
    with pytest.raises(ValueError, match="3 samples"):
        bootstrap_auc(torch.zeros(3, 1), torch.zeros(3, 1), ["a", "b"], 2, seed=0)
