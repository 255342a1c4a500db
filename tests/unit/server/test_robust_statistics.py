"""Robust sums and means against NumPy, SciPy, Flower and slow loops."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from server.robust_statistics import capped, krum_scores, median, middle, trimmed_mean

VALUE = st.floats(-1e3, 1e3, width=32)
ROWS = st.lists(st.tuples(*[VALUE] * 3), min_size=1, max_size=9)
WEIGHT = st.one_of(st.just(0.0), st.floats(0.1, 1e6))
WEIGHTS = st.dictionaries(st.integers(0, 99).map(str), WEIGHT, min_size=1, max_size=9)


@given(ROWS)
def test_the_median_is_numpys(rows: list[tuple[float, ...]]) -> None:
    found = median([torch.tensor(row) for row in rows])
    np.testing.assert_allclose(found, np.median(np.array(rows), axis=0))


@given(ROWS, st.integers(0, 4))
def test_the_trimmed_mean_is_scipys(rows: list[tuple[float, ...]], trim: int) -> None:
    trim = min(trim, middle(len(rows)))
    found = trimmed_mean(torch.tensor(rows), trim)
    expected = trim_mean(np.array(rows), (trim + 0.5) / len(rows), axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(ROWS, st.integers(1, 3), st.sampled_from([-1e38, -1.0, 1e38]))
def test_as_many_false_sites_as_are_trimmed_leave_the_honest_range(
    honest: list[tuple[float, ...]], false: int, value: float
) -> None:
    if len(honest) <= false:
        return
    everyone = torch.tensor([*honest, *[(value, -value, 0.0)] * false])
    low, high = (torch.tensor(honest).aminmax(dim=0)[end].double() for end in (0, 1))
    for trim in (false, middle(len(everyone))):
        found = trimmed_mean(everyone, trim)
        assert bool((low <= found).all()) and bool((found <= high).all())


@given(WEIGHTS, st.integers(1, 3))
def test_malicious_sites_have_less_than_half_of_capped_weights(
    weights: dict[str, float], malicious: int
) -> None:
    found = capped(weights, malicious)
    positive = sorted(weight for weight in found.values() if weight)
    assert all(found[site] <= weight for site, weight in weights.items())
    assert all(bool(found[site]) == bool(weight) for site, weight in weights.items())
    if len(positive) > 2 * malicious:
        assert sum(positive[-malicious:]) < 0.5 * sum(positive)
        assert positive[-1] <= sum(positive) / (2 * malicious + 1) * (1 + 1e-9)
    else:
        assert positive == positive[:1] * len(positive)
    # Whoever is not cut keeps its weight, and as many as possible are not.
    kept = [site for site in weights if found[site] == weights[site] > 0]
    assert kept or not positive


def test_no_more_is_cut_than_needed() -> None:
    weights = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 1000.0}
    # A third of the sum: x = (60 + x) / 3.
    assert capped(weights, 1) == {"a": 10.0, "b": 20.0, "c": 30.0, "d": pytest.approx(30.0)}
    even = {"a": 10.0, "b": 11.0, "c": 12.0, "d": 13.0}
    assert capped(even, 1) == even == capped(even, 0)
    assert capped({"a": 1e6, "b": 3.0, "c": 0.0}, 1) == {"a": 3.0, "b": 3.0, "c": 0.0}


@given(st.integers(3, 9), st.integers(0, 2**31), st.data())
def test_krums_scores_are_those_of_slow_loops(number: int, seed: int, data: st.DataObject) -> None:
    malicious = data.draw(st.integers(0, (number - 3) // 2))
    points = torch.randn(number, 4, generator=torch.Generator().manual_seed(seed)).double()
    squares = torch.cdist(points, points) ** 2
    slow = []
    for index in range(number):
        others = sorted(float(squares[index, j]) for j in range(number) if j != index)
        slow.append(sum(others[: number - malicious - 2]))
    scores = krum_scores(squares, malicious)
    assert scores.tolist() == pytest.approx(slow)
    for kept in (1, number - malicious - 2):
        assert set(scores.argsort()[:kept].tolist()) == flowers(points, malicious, kept)


def flowers(points: torch.Tensor, malicious: int, kept: int) -> set[int]:
    """The sites that Flower's Krum and Multi-Krum select."""
    contents = [RecordDict({"x": ArrayRecord({"x": Array(point.numpy())})}) for point in points]
    selected = select_multikrum(contents, malicious, kept)
    return {next(i for i, content in enumerate(contents) if content is one) for one in selected}
