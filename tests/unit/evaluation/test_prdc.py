"""Precision, recall, density, coverage, their intervals, and copying, against slow references."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from torch import Tensor

from mediffusion_core.evaluation.jackknife import half_sample_intervals
from mediffusion_core.evaluation.memorisation import copying, nearest_neighbours
from mediffusion_core.evaluation.prdc import Overlap, manifold_overlap


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(samples: Tensor, real: Tensor, k: int, wide: int) -> Overlap:
    def distance(x: Tensor, y: Tensor) -> float:
        return math.dist(x.tolist(), y.tolist())

    def radius(points: Tensor, at: int, neighbours: int) -> float:
        others = [distance(points[at], p) for place, p in enumerate(points) if place != at]
        return sorted(others)[neighbours - 1]

    def inside(y: Tensor, points: Tensor, neighbours: int) -> list[bool]:
        return [distance(y, x) <= radius(points, at, neighbours) for at, x in enumerate(points)]

    count, balls = len(samples), [inside(y, real, wide) for y in samples]
    return Overlap(
        precision=sum(any(inside(y, real, k)) for y in samples) / count,
        recall=sum(any(inside(x, samples, k)) for x in real) / len(real),
        density=sum(map(sum, balls)) / (wide * count),
        coverage=sum(any(column) for column in zip(*balls, strict=True)) / len(real),
    )


@given(st.integers(0, 10_000), st.integers(5, 9), st.integers(5, 9), st.floats(0, 3))
def test_overlap_equals_its_definition(seed: int, m: int, n: int, shift: float) -> None:
    samples, real = normal(m, 2, seed) + shift, normal(n, 2, seed + 1)
    found = manifold_overlap(samples, real, precision_neighbours=2, coverage_neighbours=3)
    assert found == by_loops(samples, real, 2, 3)


def test_of_the_same_images_and_of_others_far_away() -> None:
    real = normal(40, 6, 0)
    same = manifold_overlap(real, real)
    # Each of the k + 1 points of a ball of the k-th neighbour is inside of it.
    assert same == Overlap(1.0, 1.0, pytest.approx(6 / 5), 1.0)
    assert manifold_overlap(real + 1000, real) == Overlap(0.0, 0.0, 0.0, 0.0)


def test_samples_of_one_kind_are_precise_and_cover_little() -> None:
    """Real images of two kinds, where the samples are all of one kind."""
    first, second = normal(60, 4, 0), normal(60, 4, 1) + 100
    found = manifold_overlap(normal(60, 4, 2), torch.cat([first, second]))
    assert found.precision > 0.8
    assert 0.2 < found.recall <= 0.5
    assert 0.2 < found.coverage <= 0.5


@pytest.mark.parametrize(("m", "n"), [(5, 20), (20, 5)])
def test_there_must_be_neighbours(m: int, n: int) -> None:
    with pytest.raises(ValueError, match="5 neighbours need more points than"):
        manifold_overlap(normal(m, 2, 0), normal(n, 2, 1))
    with pytest.raises(ValueError, match="features must be"):
        manifold_overlap(normal(20, 2, 0), normal(20, 3, 1))


# Intervals


def means(samples: Tensor, real: Tensor) -> dict[str, float]:
    return {"samples": float(samples.mean()), "difference": float(samples.mean() - real.mean())}


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_half_samples_give_the_interval_of_a_mean() -> None:
    samples, real = normal(200, 1, 0), normal(300, 1, 1)
    groups = (names(200), names(300))
    found = half_sample_intervals(means, samples, real, groups, 1500, seed=0)
    alone, both = found["samples"], found["difference"]
    assert alone.value == float(samples.mean())
    error = float(samples.std()) / 200**0.5
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    error = (float(samples.var()) / 200 + float(real.var()) / 300) ** 0.5
    assert both.high - both.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert alone.low < alone.value < alone.high


def test_images_of_one_patient_are_drawn_together() -> None:
    """Ten copies of each of twenty images are worth twenty."""
    values = normal(20, 1, 0)
    patients = [str(number) for number in range(20) for _ in range(10)]
    copied = half_sample_intervals(
        means, values.repeat_interleave(10, 0), values, (patients, names(20)), 600, seed=0
    )["samples"]
    single = half_sample_intervals(means, values, values, (names(20), names(20)), 600, seed=0)
    width = single["samples"].high - single["samples"].low
    assert copied.high - copied.low == pytest.approx(width, rel=0.15)


# Copies


def test_the_nearest_training_images_are_found() -> None:
    features, training = normal(600, 3, 0), normal(50, 3, 1)  # more than one chunk
    found = nearest_neighbours(features, training, 4)
    ordered = torch.cdist(features, training).sort(dim=1)
    assert torch.equal(found.positions, ordered.indices[:, :4])
    torch.testing.assert_close(found.distances, ordered.values[:, :4])
    assert nearest_neighbours(features, training[:2], 4).positions.shape == (600, 2)


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_copying_is_the_mann_whitney_statistic(drawn: list[int], held_out: list[int]) -> None:
    found = copying(torch.tensor(drawn).double(), torch.tensor(held_out).double())
    statistic = mannwhitneyu(held_out, drawn).statistic
    assert found == pytest.approx(statistic / (len(drawn) * len(held_out)))


def test_copies_score_one() -> None:
    training, held_out = normal(30, 5, 0), normal(20, 5, 1)
    distances = nearest_neighbours(held_out, training, 1).distances[:, 0]
    copies = nearest_neighbours(training[:10], training, 1).distances[:, 0]
    assert copying(copies, distances) == 1.0
    assert copying(distances, distances) == 0.5
