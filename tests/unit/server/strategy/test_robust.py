"""Rules of aggregation over replies that wait on the disk, and the sites that they leave out."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.moment_names import MEAN, SQUARE, STEPS
from mediffusion_core.messaging.protocol import CONTROLS, HEAD, JOINT, MOMENTS, UNET
from mediffusion_core.settings import Aggregation, FederationSettings
from server.messages import Reply
from server.state import RunState
from server.strategy.gathering import Aggregated, Gathering
from server.strategy.robust import ADAM_RATIO, RobustAggregator, common_control
from server.strategy.rules import Changes
from server.strategy.scaffold import corrections

State = dict[str, Tensor]
RULES: tuple[Aggregation, ...] = ("mean", "median", "trimmed_mean", "krum", "multi_krum")


def federation(
    rule: Aggregation,
    malicious: int = 1,
    bound: float | None = None,
    agreement: float | None = None,
) -> Any:
    server = {"unet": {"aggregation": rule}, "head": {"aggregation": rule}}
    given = {"num_malicious_sites": malicious, "norm_bound": bound, "server": server}
    return FederationSettings.model_validate({**given, "agreement_bound": agreement})


def sent() -> dict[str, State]:
    weights = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2)}
    moments = {STEPS: torch.tensor(4.0)}
    for name, value in weights.items():
        moments |= {name + MEAN: torch.zeros_like(value), name + SQUARE: torch.zeros_like(value)}
    return {UNET: weights, HEAD: weights, MOMENTS[UNET]: moments, MOMENTS[HEAD]: moments}


def reply(number: int, images: float = 10.0, labelled: float = 5.0, scale: float = 1.0) -> Reply:
    """Of a site that changed every weight by `scale` times a draw of its own around 1."""
    generator = torch.Generator().manual_seed(number)
    components: dict[str, State] = {}
    for component, state in sent().items():
        components[component] = {}
        for name, value in state.items():
            drawn = scale * (1 + 0.3 * torch.randn(value.shape, generator=generator))
            components[component][name] = drawn.square() if name.endswith(SQUARE) else value + drawn
    metrics = {"images_seen": images, "labelled_seen": labelled, "steps": 3.0}
    return Reply(f"site-{number}", components, metrics)


def aggregated(settings: FederationSettings, replies: Sequence[Reply], folder: Path) -> Aggregated:
    aggregator = RobustAggregator(settings, sent(), folder / "replies")
    for one in replies:
        aggregator.take(one)
    return aggregator.aggregated()


def stacked(replies: Sequence[Reply], component: str, name: str) -> np.ndarray[Any, Any]:
    return np.stack([one.components[component][name].double().numpy() for one in replies])


@pytest.mark.parametrize("sites", [1, 2, 5, 8])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_every_value_is_aggregated_alike(tmp_path: Path, rule: Aggregation, sites: int) -> None:
    replies = [reply(number, images=10.0**number) for number in range(sites)]
    found = aggregated(federation(rule, malicious=2), reversed(replies), tmp_path)
    trim = (sites - 1) // 2 if rule == "median" else min(2, (sites - 1) // 2)
    for component in JOINT:
        for name, value in sent()[component].items():
            values = np.sort(stacked(replies, component, name), axis=0)
            expected = values[trim : sites - trim].mean(axis=0)
            made = found.components[component][name]
            assert made.shape == value.shape and made.dtype == value.dtype
            np.testing.assert_allclose(made, expected, rtol=1e-6)
    assert found.sites == {UNET: [r.site for r in replies], HEAD: [r.site for r in replies]}
    assert not list(tmp_path.iterdir())


def test_krum_takes_a_site_with_its_moments_and_multi_krum_the_mean_of_the_nearest(
    tmp_path: Path,
) -> None:
    replies = [reply(number) for number in range(6)] + [reply(6, images=1e6, scale=-1.0)]
    points = np.concatenate(
        [stacked(replies, UNET, name).reshape(7, -1) for name in sent()[UNET]], axis=1
    )
    squares = np.square(points[:, None] - points).sum(axis=-1)
    scores = [sum(sorted(row)[1 : 1 + 7 - 1 - 2]) for row in squares]
    best = np.argsort(scores)
    for rule, kept in (("krum", best[:1]), ("multi_krum", sorted(best[:4]))):
        found = aggregated(federation(rule), replies, tmp_path)  # type: ignore[arg-type]
        assert found.sites is not None and found.sites[UNET] == [f"site-{n}" for n in kept]
        assert "site-6" not in found.sites[UNET] + found.sites[HEAD]
        for component in (UNET, MOMENTS[UNET]):
            for name in sent()[component]:
                expected = stacked([replies[n] for n in kept], component, name).mean(axis=0)
                np.testing.assert_allclose(found.components[component][name], expected, rtol=1e-6)


def test_two_of_one_component_are_averaged_and_the_record_says_that_neither_could_be_false(
    tmp_path: Path,
) -> None:
    replies = [reply(n, labelled=5.0 * (n < 2)) for n in range(5)]
    for rule in RULES[1:]:
        found = aggregated(federation(rule), replies, tmp_path)
        assert found.tolerated == {HEAD: 0}
        expected = stacked(replies[:2], HEAD, "layer.weight").mean(axis=0)
        np.testing.assert_allclose(found.components[HEAD]["layer.weight"], expected, rtol=1e-6)


def test_no_site_has_more_than_its_share_of_a_mean(tmp_path: Path) -> None:
    replies = [reply(n, images=images) for n, images in enumerate((10.0, 20.0, 30.0, 1e6))]
    found = aggregated(federation("mean"), replies, tmp_path)
    values = stacked(replies, UNET, "layer.weight")
    expected = np.average(values, axis=0, weights=[10, 20, 30, 30])
    np.testing.assert_allclose(found.components[UNET]["layer.weight"], expected, rtol=1e-6)
    assert found.tolerated == {}


def test_a_component_that_no_site_trained_is_left_out(tmp_path: Path) -> None:
    found = aggregated(federation("median"), [reply(n, labelled=0.0) for n in range(3)], tmp_path)
    assert set(found.components) == {UNET, MOMENTS[UNET]}
    assert aggregated(federation("median"), [], tmp_path).components == {}


@pytest.mark.parametrize("rule", RULES)
def test_a_change_beyond_the_norm_bound_sets_its_site_aside(
    tmp_path: Path, rule: Aggregation
) -> None:
    honest = [reply(number) for number in range(5)]
    found = aggregated(federation(rule, bound=3.0), [*honest, reply(5, scale=-50.0)], tmp_path)
    without = aggregated(federation(rule, bound=3.0), honest, tmp_path)
    assert set(found.set_aside) == {"site-5"} and not without.set_aside
    assert "50" in found.set_aside["site-5"] or "times the median" in found.set_aside["site-5"]
    assert found.sites == without.sites
    for component in JOINT:
        for name, value in without.components[component].items():
            assert torch.equal(found.components[component][name], value)


def test_where_the_others_changed_nothing_any_change_is_beyond_the_bound(tmp_path: Path) -> None:
    still = [reply(number, scale=0.0) for number in range(3)]
    found = aggregated(federation("median", bound=2.0), [*still, reply(3, scale=1e-3)], tmp_path)
    assert found.set_aside == {
        "site-3": "changed head alone of the round; federation.norm_bound is 2"
    }


@pytest.mark.parametrize("malicious", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_sites_whose_direction_too_few_others_share_are_set_aside(
    tmp_path: Path, rule: Aggregation, malicious: int
) -> None:
    honest = [reply(number) for number in range(2 * malicious + 3)]
    accomplices = [reply(n, scale=-1.0) for n in range(10, 10 + malicious)]
    settings = federation(rule, malicious, agreement=0.5)
    found = aggregated(settings, [*honest, *accomplices], tmp_path)
    without = aggregated(settings, honest, tmp_path)
    assert set(found.set_aside) == {one.site for one in accomplices}
    assert not without.set_aside and found.sites == without.sites
    assert all("agreement_bound=0.5 asks" in one for one in found.set_aside.values())
    for component in JOINT:
        for name, value in without.components[component].items():
            assert torch.equal(found.components[component][name], value)


def test_where_more_sites_disagree_than_may_be_malicious_none_is_set_aside(tmp_path: Path) -> None:
    settings = federation("median", agreement=0.5)
    against = [reply(number, scale=-1.0 if number > 1 else 1.0) for number in range(4)]
    assert not aggregated(settings, against, tmp_path).set_aside
    assert not aggregated(settings, [reply(0), reply(1, scale=-1.0)], tmp_path).set_aside


def test_a_site_that_changed_nothing_has_no_agreement(tmp_path: Path) -> None:
    settings = federation("median", agreement=0.5)
    still = [reply(0), reply(1), reply(2), reply(3, scale=0.0)]
    assert set(aggregated(settings, still, tmp_path).set_aside) == {"site-3"}
    none = [reply(number, scale=0.0) for number in range(4)]
    assert not aggregated(settings, none, tmp_path).set_aside


@pytest.mark.parametrize("malicious", [1, 2, 3])
def test_agreements_are_the_cosines_of_a_slow_reference(malicious: int) -> None:
    points = torch.randn(7, 5, generator=torch.Generator().manual_seed(malicious)).double()
    found = Changes([f"site-{n}" for n in range(7)], points @ points.T).agreements(malicious)
    for index, one in enumerate(points):
        others = [
            torch.cosine_similarity(one, p, dim=0) for n, p in enumerate(points) if n != index
        ]
        expected = sorted(others, reverse=True)[malicious - 1]
        assert float(found[index]) == pytest.approx(float(expected))


def test_trimmed_moments_keep_the_ratio_of_adam(tmp_path: Path) -> None:
    """Sites with large first moments and sites with small second ones may be others."""
    replies = [reply(number) for number in range(5)]
    for number, one in enumerate(replies):
        moments = dict(one.components[MOMENTS[UNET]])
        large = number > 1
        moments["layer.bias" + MEAN] = torch.full((2,), 1.0 if large else 0.0)
        moments["layer.bias" + SQUARE] = torch.full((2,), 1.0 if number == 4 else 1e-8)
        replies[number] = Reply(one.site, {**one.components, MOMENTS[UNET]: moments}, one.metrics)
    found = aggregated(federation("median"), replies, tmp_path).components[MOMENTS[UNET]]
    for name in sent()[UNET]:
        square = found[name + SQUARE]
        assert bool((square >= 0).all())
        assert bool((found[name + MEAN].abs() <= ADAM_RATIO * square.sqrt() * 1.0001).all())


def test_control_variates_follow_the_sites_that_count(tmp_path: Path) -> None:
    settings = federation("krum", bound=3.0)
    gathering = Gathering(RobustAggregator(settings, sent(), tmp_path / "replies"))
    for number in range(6):
        one = reply(number, scale=100.0 if number == 5 else 1.0)
        gradients = {CONTROLS[UNET]: {"layer.bias": torch.full((2,), float(number))}}
        gathering.take(Reply(one.site, {**one.components, **gradients}, one.metrics))
    found = gathering.aggregated()
    kept = gathering.remembered({}, found)
    assert found.sites is not None and set(kept[UNET]) == set(found.sites[UNET])
    assert len(kept[UNET]) == 1 and "site-5" not in kept[UNET]


@pytest.mark.parametrize(("rule", "expected"), [("median", 2.0), ("multi_krum", 1.5 / 3 + 10.5)])
def test_the_common_control_variate_is_aggregated_as_its_component(
    rule: Aggregation, expected: float
) -> None:
    values, images = {"a": 1.0, "b": 2.0, "c": 30.5}, {"a": 10.0, "b": 10.0, "c": 1e9}
    controls = {
        UNET: {
            site: {"x": torch.full((2,), value), "site_weight": torch.tensor(images[site])}
            for site, value in values.items()
        }
    }

    def mean(component: str, sites: Any, weights: Mapping[str, float]) -> Any:
        return common_control(federation(rule), component, sites, weights)

    own = corrections(controls, ["a"], mean)["a"][CONTROLS[UNET]]["x"]
    if rule == "multi_krum":
        expected = sum(values.values()) / 3
    assert own.tolist() == pytest.approx([expected - 1.0] * 2)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["federation.server.unet.aggregation=median"], "needs federation.num_malicious_sites"),
        (["federation.norm_bound=3"], "needs federation.num_malicious_sites"),
        (["federation.agreement_bound=0"], "needs federation.num_malicious_sites"),
        (["federation.num_malicious_sites=2"], "needs 5 sites in each round for 2 malicious"),
        (
            ["federation.num_malicious_sites=1", "federation.server.head.aggregation=krum"],
            "head.aggregation=krum needs 5 sites in each round for 1 malicious ones, and 3 train",
        ),
        (
            ["federation.num_malicious_sites=1", "federation.fraction_train=0.67"],
            "needs 3 sites in each round for 1 malicious ones, and 2 train",
        ),
        (
            [
                "federation.num_malicious_sites=1",
                "federation.server.unet.aggregation=median",
                "federation.weighting=steps",
            ],
            "has no weights",
        ),
        (["federation.num_malicious_sites=1", "federation.norm_bound=1"], "greater than 1"),
        (
            ["federation.num_malicious_sites=1", "federation.client_level.noise_multiplier=1"],
            "not in a median or a selection",
        ),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        compose("config", overrides)


def test_rounds_of_few_replies_are_those_of_a_state_without_the_others(tmp_path: Path) -> None:
    """A round of one reply takes it, whatever the rule; nothing is not a number."""
    state = RunState(weights=dict(sent()))
    for rule in RULES:
        found = aggregated(federation(rule), [reply(0)], tmp_path)
        for component in state.weights:
            for name, value in found.components[component].items():
                assert torch.equal(value, reply(0).components[component][name])
                assert math.isfinite(float(value.sum()))
