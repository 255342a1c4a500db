"""The server's step against slow loops over the published recursions."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.settings import ServerOptimizer
from server.strategy.server_optimizers import server_step, step_by

VALUE = st.floats(-10, 10, width=32)
ROUNDS = st.lists(VALUE, min_size=1, max_size=6)


def state(value: float) -> dict[str, Tensor]:
    return {"layer.weight": torch.tensor([value, -value]), "bias": torch.tensor(value / 3)}


def run(settings: ServerOptimizer, means: list[float]) -> dict[str, Tensor]:
    """The weights after some rounds; `means` has the sites' mean of each round."""
    weights, memory = state(0.5), {}
    for mean in means:
        weights, memory = server_step(settings, weights, state(mean), memory)
    return weights


def slow(settings: ServerOptimizer, means: list[float], scale: float) -> float:
    """The recursions of the module's docstring for one number, in plain Python."""
    weight, mean_change, square = 0.5 * scale, 0.0, settings.tau**2
    for mean in means:
        change = mean * scale - weight
        fresh = 1.0 if settings.method == "fedavgm" else 1 - settings.beta1
        mean_change = settings.beta1 * mean_change + fresh * change
        if settings.method == "fedadam":
            square = settings.beta2 * square + (1 - settings.beta2) * change**2
        if settings.method == "fedyogi":
            assume(abs(square - change**2) > 1e-6)  # or rounding decides which way it goes
            square -= (1 - settings.beta2) * change**2 * math.copysign(1, square - change**2)
        if settings.method == "fedavg":
            weight += settings.learning_rate * change
        elif settings.method == "fedavgm":
            weight += settings.learning_rate * mean_change
        else:
            weight += settings.learning_rate * mean_change / (square**0.5 + settings.tau)
    return weight


@pytest.mark.parametrize("method", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
@given(means=ROUNDS, rate=st.sampled_from([0.1, 0.7, 1.0]))
def test_each_method_follows_its_recursion(method: str, means: list[float], rate: float) -> None:
    settings = ServerOptimizer.model_validate(
        {"method": method, "learning_rate": rate, "beta1": 0.6, "beta2": 0.9, "tau": 0.1}
    )
    weights = run(settings, means)
    for value, scale in [
        (weights["layer.weight"][0], 1.0),
        (weights["layer.weight"][1], -1.0),
        (weights["bias"], 1 / 3),
    ]:
        assert float(value) == pytest.approx(slow(settings, means, scale), rel=1e-3, abs=1e-3)


def test_plain_averaging_hands_the_mean_on_untouched() -> None:
    mean = {"x": torch.randn(50, generator=torch.Generator().manual_seed(0))}
    weights, memory = server_step(ServerOptimizer(), {"x": torch.ones(50)}, mean, {})
    assert torch.equal(weights["x"], mean["x"]) and memory == {}


def test_momentum_carries_on_where_the_sites_stand_still() -> None:
    settings = ServerOptimizer(method="fedavgm", beta1=0.5)
    weights, memory = server_step(settings, {"x": torch.zeros(1)}, {"x": torch.ones(1)}, {})
    again, _ = server_step(settings, weights, weights, memory)
    assert weights["x"].tolist() == [1.0] and again["x"].tolist() == [1.5]


@pytest.mark.parametrize("method", ["fedadam", "fedyogi"])
def test_adaptive_steps_do_not_depend_on_the_size_of_the_change(method: str) -> None:
    settings = ServerOptimizer.model_validate(
        {"method": method, "learning_rate": 0.1, "beta1": 0.0, "beta2": 0.0, "tau": 1e-8}
    )
    for size in (0.01, 1.0, 100.0):
        weights, _ = server_step(settings, {"x": torch.zeros(1)}, {"x": torch.full((1,), size)}, {})
        assert float(weights["x"]) == pytest.approx(0.1, rel=1e-4)


def test_types_are_kept_and_inputs_left_alone() -> None:
    settings = ServerOptimizer(method="fedadam")
    before, mean = {"x": torch.zeros(2).half()}, {"x": torch.ones(2).half()}
    weights, memory = server_step(settings, before, mean, {})
    assert weights["x"].dtype == torch.float16
    assert {tensor.dtype for tensor in memory.values()} == {torch.float32}
    kept = {name: tensor.clone() for name, tensor in memory.items()}
    server_step(settings, weights, mean, memory)
    assert before["x"].tolist() == [0.0, 0.0] and mean["x"].tolist() == [1.0, 1.0]
    assert all(torch.equal(memory[name], kept[name]) for name in kept)


@pytest.mark.parametrize("method", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_a_step_along_a_change_is_that_to_the_mean_with_this_change(method: str) -> None:
    settings = ServerOptimizer.model_validate({"method": method, "learning_rate": 0.3})
    by_mean, by_change = (state(0.5), {}), (state(0.5), {})
    for mean in (0.2, -1.0, 3.0):
        changes = {n: state(mean)[n].double() - value.double() for n, value in by_change[0].items()}
        by_mean = server_step(settings, by_mean[0], state(mean), by_mean[1])
        by_change = step_by(settings, by_change[0], changes, by_change[1])
    for found, expected in zip(by_change, by_mean, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
