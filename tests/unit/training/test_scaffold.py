"""SCAFFOLD on a toy whose optimum is known, and what the server makes of the sites' gradients."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.messaging.protocol import CONTROLS, HEAD, UNET
from mediffusion_core.training.adam_moments import fresh_moments, load_moments, read_moments
from mediffusion_core.training.scaffold import ControlVariate
from server.messages import Reply
from server.strategy.aggregation import weighted_mean
from server.strategy.scaffold import WEIGHT, Controls, corrections, remembered

# Each site's loss is a / 2 (x - b)² in each of two coordinates: other optima, other curvatures.
CURVATURE = {"one": torch.tensor([4.0, 1.0]), "other": torch.tensor([1.0, 2.0])}
CENTRE = {"one": torch.tensor([1.0, -2.0]), "other": torch.tensor([-1.0, 3.0])}
IMAGES = {"one": 100.0, "other": 300.0}
RATE, STEPS = 0.1, 8


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(2))


def reply(site: str, gradient: Mapping[str, Tensor], images: float, labelled: float = 0) -> Reply:
    metrics = {"images_seen": images, "labelled_seen": labelled}
    return Reply(site, {CONTROLS[UNET]: gradient}, metrics)


def weighted(values: Mapping[str, Tensor]) -> Tensor:
    """Σ w a value / Σ w a, by coordinate: with the sites' optima the optimum of the whole."""
    weights = {site: IMAGES[site] * CURVATURE[site] for site in IMAGES}
    total = sum(weights[site] * values[site] for site in values)
    assert isinstance(total, Tensor)
    return total / sum(weights.values())


def descend(
    point: Point, site: str, control: ControlVariate, optimizer: torch.optim.Optimizer
) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        (CURVATURE[site] / 2 * (point.x - CENTRE[site]) ** 2).sum().backward()
        control.correct_gradients()
        optimizer.step()


def federated(rounds: int, scaffold: bool, drawn: Sequence[Sequence[str]]) -> Tensor:
    """x after rounds of SGD; the sites in each entry of `drawn` take part in turn."""
    weights: Mapping[str, Tensor] = {"x": torch.zeros(2)}
    controls: Controls = {}
    for number in range(rounds):
        asked = drawn[number % len(drawn)]
        own = corrections(controls, asked)
        states, replies = [], []
        for site in asked:
            point = Point()
            point.load_state_dict(dict(weights))
            control = ControlVariate(point, own[site].get(CONTROLS[UNET], {}))
            descend(point, site, control, torch.optim.SGD(point.parameters(), RATE))
            states.append(point.state_dict())
            replies.append(reply(site, control.mean_gradient(), IMAGES[site]))
        weights = weighted_mean(states, [IMAGES[site] for site in asked])
        if scaffold:
            controls = remembered(controls, replies)
    return weights["x"]


def test_dissimilar_sites_meet_at_the_common_optimum() -> None:
    found = federated(200, scaffold=True, drawn=[("one", "other")])
    torch.testing.assert_close(found, weighted(CENTRE), rtol=1e-4, atol=1e-4)


def test_averaging_alone_ends_elsewhere() -> None:
    """Its fixed point in closed form: K steps take a site the part 1 - (1 - η a)^K of its way."""
    found = federated(200, scaffold=False, drawn=[("one", "other")])
    weight = {site: IMAGES[site] * (1 - (1 - RATE * CURVATURE[site]) ** STEPS) for site in IMAGES}
    expected = sum(weight[site] * CENTRE[site] for site in IMAGES) / sum(weight.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - weighted(CENTRE)).abs().min() > 0.1


def test_adaptive_sites_with_averaged_moments_meet_there_too() -> None:
    """As a run has it: AdamW, whose moments travel with the weights."""

    def run(scaffold: bool) -> Tensor:
        weights: Mapping[str, Tensor] = {"x": torch.zeros(2)}
        moments: Mapping[str, Tensor] = fresh_moments(Point())
        controls: Controls = {}
        for _ in range(400):
            own = corrections(controls, list(IMAGES))
            states, sent, replies = [], [], []
            for site, images in IMAGES.items():
                point = Point()
                point.load_state_dict(dict(weights))
                optimizer = torch.optim.AdamW(point.parameters(), 3e-3, weight_decay=0)
                load_moments(optimizer, point, moments)
                control = ControlVariate(point, own[site].get(CONTROLS[UNET], {}))
                descend(point, site, control, optimizer)
                states.append(point.state_dict())
                sent.append(read_moments(optimizer, point))
                replies.append(reply(site, control.mean_gradient(), images))
            weights = weighted_mean(states, list(IMAGES.values()))
            moments = weighted_mean(sent, list(IMAGES.values()))
            if scaffold:
                controls = remembered(controls, replies)
        return weights["x"]

    away = {on: float((run(on) - weighted(CENTRE)).abs().max()) for on in (True, False)}
    assert away[True] < 1e-3 and away[False] > 10 * away[True]


def test_a_site_that_is_not_always_drawn_stays_in_the_mean() -> None:
    drawn = [("one", "other"), ("one",), ("other",)]
    kept: Controls = {}
    for number, asked in enumerate(drawn):
        replies = [reply(site, {"x": torch.full((2,), 1.0 + number)}, 1.0) for site in asked]
        kept = remembered(kept, replies)
    # "one" sent 2 last, "other" 3: the mean is 2.5.
    own = corrections(kept, ["one", "other", "never"])
    assert own["one"][CONTROLS[UNET]]["x"].tolist() == [0.5, 0.5]
    assert own["other"][CONTROLS[UNET]]["x"].tolist() == [-0.5, -0.5]
    assert own["never"] == {}


VALUES = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)


@given(st.lists(st.tuples(VALUES, st.integers(0, 1000)), min_size=1, max_size=5))
def test_corrections_cancel_in_the_components_mean(sites: list[tuple[list[float], int]]) -> None:
    replies = [
        reply(f"a/b-{number}", {"layer.weight": torch.tensor(values)}, images)
        for number, (values, images) in enumerate(sites)
    ]
    own = corrections(remembered({}, replies), [one.site for one in replies])
    total = torch.zeros(3, dtype=torch.float64)
    for one in replies:
        images = one.metrics["images_seen"]
        assert (CONTROLS[UNET] in own[one.site]) == (images > 0)
        if images:
            total += images * own[one.site][CONTROLS[UNET]]["layer.weight"].double()
    assert total.abs().max() <= 1e-5 * 100 * max(1, sum(images for _, images in sites))


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (3, 1, 2, 0), (2, 1, 3, 0)])
def test_the_order_in_which_sites_came_changes_not_a_bit(order: tuple[int, ...]) -> None:
    """A resumed run has it from a file, one that was not stopped as the sites were first drawn."""
    first, second = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(0))
    # Their mean is nothing but the sum's rounding, and all that the last site is corrected by.
    values = (first, second, -first - second, torch.zeros(10_000))
    found = []
    for numbers in ((0, 1, 2, 3), order):
        kept: Controls = {}
        for number in numbers:
            images = 12 if number == 3 else 96  # whose shares are no binary fractions
            kept = remembered(kept, [reply(f"site-{number}", {"x": values[number]}, images)])
        found.append(corrections(kept, ["site-3"])["site-3"][CONTROLS[UNET]]["x"])
    assert torch.equal(*found)


def test_a_site_without_labels_has_no_part_in_the_heads_mean() -> None:
    heads = [
        Reply(one.site, {CONTROLS[HEAD]: {"x": torch.full((1,), value)}}, one.metrics)
        for one, value in ((reply("a", {}, 9, 2), 4.0), (reply("b", {}, 9, 0), 8.0))
    ]
    kept = remembered({}, heads)
    assert set(kept[HEAD]) == {"a"}
    assert float(kept[HEAD]["a"][WEIGHT]) == 2
    assert corrections(kept, ["a", "b"])["b"] == {}


def test_without_control_variates_nothing_is_kept_and_nothing_sent() -> None:
    plain = Reply("a", {UNET: {"x": torch.ones(1)}}, reply("a", {}, 3).metrics)
    assert remembered({}, [plain]) == {}
    assert corrections({}, ["a"]) == {"a": {}}


def test_the_mean_is_of_the_gradients_before_they_are_corrected() -> None:
    point = Point()
    control = ControlVariate(point, {"x": torch.tensor([10.0, 0.0])})
    for gradient in ([1.0, 2.0], [3.0, 6.0]):
        point.x.grad = torch.tensor(gradient)
        control.correct_gradients()
    assert point.x.grad is not None and point.x.grad.tolist() == [13.0, 6.0]
    assert control.mean_gradient()["x"].tolist() == [2.0, 4.0]


def test_parameters_outside_the_loss_are_not_corrected() -> None:
    point = Point()
    control = ControlVariate(point, {"x": torch.ones(2)})
    control.correct_gradients()
    assert point.x.grad is None
    assert control.mean_gradient()["x"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["y", "layer.x"])
def test_a_correction_of_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        ControlVariate(Point(), {name: torch.zeros(2)})
