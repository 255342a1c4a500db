"""LiRA: on Gaussians its score orders units as the exact likelihood ratio does."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import norm, spearmanr

from mediffusion_core.evaluation.likelihood_ratio import (
    label_confidences,
    offline_scores,
    shadow_sets,
)
from mediffusion_core.evaluation.membership_inference import attack

UNITS, GAP = 1500, 1.5


def gaussian_units(shadows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Units of their own difficulty: confidences N(difficulty, 1), of members GAP above."""
    generator = np.random.default_rng(shadows)
    difficulty = generator.normal(0, 5, UNITS)
    inside = shadow_sets(UNITS, UNITS // 2, shadows, 0)
    drawn = difficulty + generator.normal(size=(shadows, UNITS)) + GAP * inside
    member = generator.random(UNITS) < 0.5
    observed = difficulty + generator.normal(size=UNITS) + GAP * member
    return observed, drawn, inside, member


@pytest.mark.parametrize("shadows", [32, 256])
def test_scores_reach_the_exact_likelihood_ratio(shadows: int) -> None:
    observed, drawn, inside, member = gaussian_units(shadows)
    scores = offline_scores(observed, drawn, inside)
    found = attack(scores[member], scores[~member], 0)
    exact = float(ndtr(GAP / math.sqrt(2)))
    assert found.auc == pytest.approx(exact, abs=0.03)
    plain = attack(-observed[member], -observed[~member], 0)
    assert plain.auc < 0.6  # the difficulty hides the gap without shadow models


def test_the_order_is_that_of_the_likelihood_ratio() -> None:
    observed, drawn, inside, _ = gaussian_units(256)
    mean = np.array([drawn[~inside[:, unit], unit].mean() for unit in range(UNITS)])
    ratio = norm.logpdf(observed, mean + GAP, 1) - norm.logpdf(observed, mean, 1)
    order = spearmanr(offline_scores(observed, drawn, inside), -ratio).statistic
    assert order > 0.98


def test_members_without_a_gap_are_not_found() -> None:
    observed, drawn, inside, member = gaussian_units(8)
    observed = observed - GAP * member
    found = attack(*(offline_scores(observed, drawn, inside)[one] for one in (member, ~member)), 0)
    assert found.auc_interval[0] < 0.5 < found.auc_interval[1]


def test_a_score_by_hand() -> None:
    shadows = np.array([[1.0, 9.0], [3.0, 5.0], [7.0, 7.0]])
    inside = np.array([[False, True], [False, False], [True, False]])
    # μ_out is 2 and 6; the four deviations are 1, and two means were estimated
    scores = offline_scores(np.array([4.0, 5.0]), shadows, inside)
    assert scores == pytest.approx([-2 / math.sqrt(2), 1 / math.sqrt(2)])
    with pytest.raises(ValueError, match="all shadow models"):
        offline_scores(np.ones(2), shadows, ~np.array([[True, False]] * 3))


@pytest.mark.parametrize("shadows", [2, 5, 8])
def test_every_unit_is_outside_of_half_of_the_sets(shadows: int) -> None:
    inside = shadow_sets(31, 20, shadows, 3)
    assert inside.shape == (shadows, 31) and (inside.sum(axis=1) == 15).all()
    assert ((~inside).sum(axis=0) >= shadows // 2).all()
    assert (shadow_sets(31, 4, shadows, 3).sum(axis=1) == 4).all()
    assert (shadow_sets(31, 20, shadows, 3) == inside).all()
    assert not (shadow_sets(31, 20, shadows, 4) == inside).all()


def test_confidences_are_logits_of_the_labels_probability() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 60.0, 0.0]])
    label = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    p = logits.double().softmax(dim=1)[0, 2]
    found = label_confidences(logits, label, False)
    assert found[0].item() == pytest.approx(float((p / (1 - p)).log()), rel=1e-5)
    assert found[1].item() == pytest.approx(60 - math.log(2))  # 1 - p is no float here
    known = torch.tensor([[1.0, 0.0, math.nan]])
    assert label_confidences(logits[:1], known, True).item() == pytest.approx((2.0 + 1.0) / 2)
