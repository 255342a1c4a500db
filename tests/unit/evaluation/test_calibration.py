"""The temperature found from sums, and how far probabilities stand from frequencies."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.evaluation import (
    best_temperature,
    brier_score,
    calibration_error,
    temperature_losses,
)
from mediffusion_core.evaluation.calibration import (
    NUM_BINS,
    TEMPERATURES,
    calibration_from_sums,
    reliability_sums,
)
from mediffusion_core.models import class_probabilities

NAN = float("nan")

seeds = st.integers(0, 2**31)


def draw(
    n: int, c: int, multi_label: bool, seed: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from the probabilities that they have at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    probabilities = class_probabilities(logits / temperature, multi_label)
    if multi_label:
        return logits, torch.bernoulli(probabilities, generator=generator)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return logits, torch.zeros_like(logits).scatter_(1, drawn, 1.0)


def withhold(targets: Tensor, multi_label: bool, seed: int) -> Tensor:
    """Some labels missing: single ones, or all of a sample where classes exclude each other."""
    generator = torch.Generator().manual_seed(seed)
    shape = targets.shape if multi_label else (len(targets), 1)
    return targets.masked_fill(torch.rand(shape, generator=generator) < 0.4, NAN)


# The temperature


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.73, 5.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(
    multi_label: bool, temperature: float
) -> None:
    logits, targets = draw(20_000, 4, multi_label, seed=0, temperature=temperature)
    found = best_temperature(temperature_losses(logits, targets, multi_label))
    assert found == pytest.approx(temperature, rel=0.04)


def test_between_the_grids_points_the_minimum_is_the_exact_one() -> None:
    """Logit z, three labels in four positive: right where z / T = log 3."""
    for logit in (1.2, 2.0, 4.5):
        logits = torch.full((4, 1), logit)
        targets = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
        found = best_temperature(temperature_losses(logits, targets, True))
        # The nearest point of the grid alone is off by up to 2.6 %.
        assert found == pytest.approx(logit / math.log(3), rel=2e-3)


@settings(deadline=None)
@given(seed=seeds, multi_label=st.booleans(), cuts=st.lists(st.integers(0, 30), max_size=3))
def test_the_sum_over_sites_is_that_of_the_pooled_patients(
    seed: int, multi_label: bool, cuts: list[int]
) -> None:
    logits, targets = draw(30, 3, multi_label, seed)
    targets = withhold(targets, multi_label, seed)
    edges = [0, *sorted(cuts), 30]  # two equal ones: a site without patients
    sites = [
        temperature_losses(logits[first:last], targets[first:last], multi_label)
        for first, last in pairwise(edges)
    ]
    pooled = temperature_losses(logits, targets, multi_label)
    torch.testing.assert_close(torch.stack(sites).sum(dim=0), pooled)


@settings(deadline=None)
@given(seed=seeds, multi_label=st.booleans())
def test_losses_are_those_of_single_labels_added_up(seed: int, multi_label: bool) -> None:
    logits, targets = draw(6, 3, multi_label, seed)
    targets = withhold(targets, multi_label, seed)
    losses = temperature_losses(logits, targets, multi_label)
    assert losses.dtype == torch.float64
    for place in (0, 40, 80):
        expected = 0.0
        for row, labels in zip(logits.tolist(), targets.tolist(), strict=True):
            scaled = [logit / float(TEMPERATURES[place]) for logit in row]
            for logit, label in zip(scaled, labels, strict=True):
                if multi_label and not math.isnan(label):
                    expected += math.log1p(math.exp(-logit if label else logit))
                elif label == 1:
                    expected += math.log(sum(math.exp(other - logit) for other in scaled))
        assert float(losses[place]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("multi_label", [True, False])
def test_where_no_label_is_known_there_is_no_loss_and_nothing_changes(multi_label: bool) -> None:
    unknown = torch.full((3, 2), NAN)
    for targets in (unknown, unknown[:0]):
        losses = temperature_losses(torch.randn(len(targets), 2), targets, multi_label)
        assert torch.equal(losses, torch.zeros(len(TEMPERATURES), dtype=torch.float64))
        assert best_temperature(losses) == 1.0


def test_logits_that_no_temperature_changes_keep_theirs() -> None:
    losses = temperature_losses(torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]], False)
    assert float(losses[0]) == pytest.approx(4 * math.log(3))
    assert best_temperature(losses) == 1.0


def test_the_temperature_stays_on_the_grid() -> None:
    """A model that is never wrong could be ever surer, one that is always wrong never so little."""
    logits, targets = torch.tensor([[2.0], [-2.0]]), torch.tensor([[1.0], [0.0]])
    assert best_temperature(temperature_losses(logits, targets, True)) == 1 / 8
    assert best_temperature(temperature_losses(-logits, targets, True)) == 8.0


@settings(deadline=None)
@given(seed=seeds, place=st.integers(0, len(TEMPERATURES) - 1))
def test_a_temperature_changes_no_decision(seed: int, place: int) -> None:
    logits, _ = draw(20, 4, False, seed)
    scaled = logits / TEMPERATURES[place]
    exclusive, independent = (class_probabilities(scaled, kind) for kind in (False, True))
    assert torch.equal(exclusive.argmax(dim=1), logits.argmax(dim=1))
    assert torch.equal(independent > 0.5, logits > 0)


# Calibration error and Brier score


def slow_error(sure: list[float], right: list[float]) -> float:
    """The definition: bin by bin, half open at the lower end."""
    total = 0.0
    for number in range(NUM_BINS):
        low, high = number / NUM_BINS, (number + 1) / NUM_BINS
        inside = [
            (p, y)
            for p, y in zip(sure, right, strict=True)
            if low < p <= high or (number == 0 and p == 0)
        ]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(y for _, y in inside) / len(inside)
            total += len(inside) / len(sure) * abs(accuracy - confidence)
    return total if sure else NAN


@settings(deadline=None)
@given(seed=seeds, multi_label=st.booleans(), n=st.integers(0, 40))
def test_figures_are_those_of_their_definitions(seed: int, multi_label: bool, n: int) -> None:
    logits, targets = draw(n, 3, multi_label, seed)
    targets = withhold(targets, multi_label, seed)
    probabilities = class_probabilities(logits, multi_label)
    sure, right, squares = [], [], []
    for row, labels in zip(probabilities.tolist(), targets.tolist(), strict=True):
        known = [(p, y) for p, y in zip(row, labels, strict=True) if not math.isnan(y)]
        if multi_label:
            sure += [p for p, _ in known]
            right += [y for _, y in known]
            squares += [(p - y) ** 2 for p, y in known]
        elif known:
            top = max(known)
            sure.append(top[0])
            right.append(top[1])
            squares.append(sum((p - y) ** 2 for p, y in known))
    error = calibration_error(probabilities, targets, multi_label)
    score = brier_score(probabilities, targets, multi_label)
    assert error == pytest.approx(slow_error(sure, right), nan_ok=True)
    assert score == pytest.approx(sum(squares) / len(squares) if squares else NAN, nan_ok=True)


def test_one_probability_is_off_by_its_distance_from_the_frequency() -> None:
    targets = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    given_all = torch.full((4, 1), 0.9)
    assert calibration_error(given_all, targets, True) == pytest.approx(0.9 - 0.25)
    assert brier_score(given_all, targets, True) == pytest.approx((0.01 + 3 * 0.81) / 4)
    assert calibration_error(torch.full((4, 1), 0.25), targets, True) == pytest.approx(0.0)


@pytest.mark.parametrize(("named", "error", "score"), [(0, 0.0, 0.0), (1, 1.0, 2.0)])
def test_the_bounds_of_exclusive_classes(named: int, error: float, score: float) -> None:
    targets = torch.tensor([[1.0, 0.0, 0.0]])
    probabilities = torch.eye(3)[[named]]
    assert calibration_error(probabilities, targets, False) == pytest.approx(error)
    assert brier_score(probabilities, targets, False) == score


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    """Together with one of 0.98: on average they are right as often as they say."""
    probabilities = torch.tensor([[1.0], [0.98]], dtype=torch.float64).repeat(50, 1)
    targets = torch.ones(100, 1)
    targets[0] = 0.0
    assert calibration_error(probabilities, targets, True) == pytest.approx(0.0)


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_true_temperature_calibrates(multi_label: bool) -> None:
    logits, targets = draw(20_000, 4, multi_label, seed=1, temperature=3.0)
    raw, scaled = (class_probabilities(logits / one, multi_label) for one in (1.0, 3.0))
    assert calibration_error(scaled, targets, multi_label) < 0.015
    assert calibration_error(raw, targets, multi_label) > 0.1
    assert brier_score(scaled, targets, multi_label) < brier_score(raw, targets, multi_label)


@pytest.mark.parametrize("figure", [temperature_losses, calibration_error, brier_score])
def test_mismatched_inputs_are_refused(figure: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2, 2\)"):
        figure(torch.zeros(3, 2), torch.zeros(2, 2), True)
    with pytest.raises(ValueError, match="diverged"):
        figure(torch.full((2, 2), NAN), torch.zeros(2, 2), True)


@pytest.mark.parametrize("multi_label", [True, False])
def test_figures_from_the_sums_of_sites_are_those_of_the_pooled_patients(multi_label: bool) -> None:
    logits, targets = draw(90, 3, multi_label, seed=3)
    targets = withhold(targets, multi_label, seed=4)
    probabilities = class_probabilities(logits, multi_label)
    sites = [
        reliability_sums(probabilities[part], targets[part], multi_label)
        for part in (slice(0, 20), slice(20, 90))
    ]
    error, brier = calibration_from_sums(*(sum(parts) for parts in zip(*sites, strict=True)))
    assert error == pytest.approx(calibration_error(probabilities, targets, multi_label), abs=1e-6)
    assert brier == pytest.approx(brier_score(probabilities, targets, multi_label))
    assert all(math.isnan(one) for one in calibration_from_sums(*map(torch.zeros_like, sites[0])))
