"""Averaging by component against slow loops and closed forms."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, UNET
from mediffusion_core.settings import Weighting
from server.messages import Reply
from server.strategy.aggregation import (
    TOGETHER,
    RunningMean,
    mean_metric,
    moving_average,
    weighted_mean,
)
from server.strategy.gathering import MeanOfReplies

VALUES = st.floats(-1e3, 1e3, width=32)
SITES = st.lists(
    st.tuples(st.lists(VALUES, min_size=4, max_size=4), st.integers(0, 1000)),
    min_size=1,
    max_size=6,
).filter(lambda sites: any(weight for _, weight in sites))


def state(values: list[float]) -> dict[str, torch.Tensor]:
    whole = torch.tensor(values)
    return {"a.weight": whole[:3].reshape(3, 1), "b": whole[3]}


def metrics(images: float, labelled: float) -> dict[str, float]:
    return {"images_seen": images, "labelled_seen": labelled}


def aggregate(
    component: str,
    states: Sequence[Mapping[str, torch.Tensor]],
    seen: Sequence[Mapping[str, float]],
    weighting: Weighting,
) -> Mapping[str, torch.Tensor] | None:
    """The mean of one component over replies; None where no site counts."""
    gathered = MeanOfReplies([component], weighting)
    for number, (one, metric) in enumerate(zip(states, seen, strict=True)):
        gathered.take(Reply(f"site-{number}", {component: one}, metric))
    return gathered.aggregated().components.get(component)


@given(SITES)
def test_a_weighted_mean_is_numpys(sites: list[tuple[list[float], int]]) -> None:
    mean = weighted_mean([state(values) for values, _ in sites], [weight for _, weight in sites])
    slow = np.average([values for values, _ in sites], axis=0, weights=[w for _, w in sites])
    assert mean["a.weight"].shape == (3, 1) and mean["b"].shape == ()
    flat = [*mean["a.weight"].flatten().tolist(), float(mean["b"])]
    assert flat == pytest.approx(slow.tolist(), rel=1e-5, abs=1e-4)


@given(SITES, st.integers(2, 50))
def test_only_the_weights_proportions_matter(
    sites: list[tuple[list[float], int]], factor: int
) -> None:
    states = [state(values) for values, _ in sites]
    one = weighted_mean(states, [weight for _, weight in sites])
    other = weighted_mean(states, [weight * factor for _, weight in sites])
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_types_are_kept_and_sums_are_formed_in_double_precision() -> None:
    many = [{"x": torch.tensor([1.0 + 2**-20], dtype=torch.float32)} for _ in range(1000)]
    mean = weighted_mean(many, [1] * 1000)
    assert mean["x"].dtype == torch.float32
    assert torch.equal(mean["x"], many[0]["x"])
    half = weighted_mean([{"x": torch.ones(1, dtype=torch.float16)}] * 2, [1, 1])
    assert half["x"].dtype == torch.float16


@pytest.mark.parametrize("broken", [1e30, math.inf, math.nan])
def test_a_site_that_counts_nothing_changes_nothing(broken: float) -> None:
    states = [state([1.0, 2.0, 3.0, 4.0]), state([broken] * 4)]
    mean = weighted_mean(states, [3, 0])
    assert mean["a.weight"].flatten().tolist() == [1.0, 2.0, 3.0]


@given(st.permutations(range(6)), st.integers(0, 1000))
def test_the_order_in_which_sites_answer_changes_not_a_bit(order: list[int], seed: int) -> None:
    """Sites of very different sizes and values, whose sum cancels to a part of each."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(6, 50, generator=generator) * 10.0 ** torch.arange(6)[:, None].float()
    values[5] = -values[4]
    weights = [3.0, 7.5, 120 / 7, 1e6, 36, 36]
    found = []
    for numbers in (range(6), order):
        running = RunningMean()
        for number in numbers:
            running.add({"x": values[number]}, weights[number])
        mean = running.mean()
        assert mean is not None
        found.append(mean["x"])
    assert torch.equal(*found)
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    exact = [
        sum(Fraction(float(value)) * share for value, share in zip(column, shares, strict=True))
        for column in values.T
    ]
    torch.testing.assert_close(found[0], torch.tensor([float(one) for one in exact]))


def test_a_mean_of_large_arrays_is_formed_in_parts() -> None:
    values = torch.randn(3, TOGETHER + 5, generator=torch.Generator().manual_seed(0))
    mean = weighted_mean([{"x": one} for one in values], [1, 2, 3])
    expected = (values.double() * torch.tensor([[1.0], [2.0], [3.0]])).sum(dim=0) / 6
    assert torch.equal(mean["x"], expected.float())


@pytest.mark.parametrize("weights", [[0, 0], [2, -1], [math.nan, 1.0], [math.inf, 1.0]])
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="not make a mean"):
        weighted_mean([state([1.0] * 4), state([2.0] * 4)], weights)


def test_components_with_other_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="different parameters"):
        weighted_mean([{"a": torch.ones(1)}, {"b": torch.ones(1)}], [1, 1])


@pytest.mark.parametrize(("component", "expected"), [(AUTOENCODER, 2.5), (UNET, 2.5), (HEAD, 1.0)])
def test_only_labelled_images_count_for_the_head(component: str, expected: float) -> None:
    states = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([3.0])}]
    seen = [metrics(100, 80), metrics(300, 0)]
    mean = aggregate(component, states, seen, "rounds")
    assert mean is not None and mean["x"].tolist() == [expected]


def test_an_untrained_head_of_an_unlabelled_site_has_no_part() -> None:
    states = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([1e30])}]
    mean = aggregate(HEAD, states, [metrics(1, 1), metrics(10_000, 0)], "rounds")
    assert mean is not None and mean["x"].tolist() == [1.0]


def test_without_any_label_there_is_no_mean_of_heads() -> None:
    states = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([3.0])}]
    assert aggregate(HEAD, states, [metrics(5, 0), metrics(7, 0)], "rounds") is None
    mean = aggregate(UNET, states, [metrics(5, 0), metrics(5, 0)], "rounds")
    assert mean is not None and mean["x"].tolist() == [2.0]


@given(st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_by_steps_a_site_moves_the_mean_as_its_images_are_many(steps: list[int]) -> None:
    """Each site walks along an axis of its own, one unit a step, with 8 images in each."""
    states = [{"x": step * axis} for step, axis in zip(steps, torch.eye(len(steps)), strict=True)]
    seen = [metrics(8 * step, step) | {"steps": float(step)} for step in steps]
    moved = {by: aggregate(UNET, states, seen, by) for by in ("rounds", "steps")}
    for by, power in (("rounds", 2), ("steps", 1)):
        mean, influence = moved[by], torch.tensor(steps, dtype=torch.float32) ** power
        assert mean is not None
        torch.testing.assert_close(mean["x"] / mean["x"].sum(), influence / influence.sum())


@given(st.floats(0, 1), st.lists(VALUES, min_size=1, max_size=8), VALUES)
def test_the_moving_average_is_a_sum_with_known_weights(
    decay: float, values: list[float], start: float
) -> None:
    average = {"x": torch.tensor([start])}
    for number, value in enumerate(values, 1):
        average = moving_average(average, {"x": torch.tensor([value])}, decay, number)
    rates = [min(decay, (r - 1) / (r + 1)) for r in range(1, len(values) + 1)]
    expected = sum(
        value * (1 - rates[r]) * math.prod(rates[r + 1 :]) for r, value in enumerate(values)
    )
    # Round 1 forgets the initial weights altogether.
    assert float(average["x"]) == pytest.approx(expected, rel=1e-4, abs=1e-2)


def test_the_first_round_takes_the_weights_as_they_are() -> None:
    current = {"x": torch.randn(100, generator=torch.Generator().manual_seed(0))}
    average = moving_average({"x": torch.full((100,), 7.0)}, current, 0.9, 1)
    assert torch.equal(average["x"], current["x"])


def test_averaging_changes_neither_of_its_inputs() -> None:
    average, current = {"x": torch.ones(2)}, {"x": torch.zeros(2)}
    moving_average(average, current, 0.9, 50)
    weighted_mean([average, current], [1, 1])
    assert average["x"].tolist() == [1.0, 1.0] and current["x"].tolist() == [0.0, 0.0]


def test_a_metric_is_averaged_over_the_sites_that_report_it() -> None:
    sites = [
        {"loss": 1.0, "images_seen": 30.0},
        {"loss": 4.0, "images_seen": 10.0},
        {"images_seen": 1000.0},
    ]
    assert mean_metric(sites, "loss", "images_seen") == pytest.approx(1.75)
    assert math.isnan(mean_metric(sites, "absent", "images_seen"))
    assert math.isnan(mean_metric([{"loss": 1.0, "images_seen": 0.0}], "loss", "images_seen"))
