"""Under the robust settings one false site of four changes a model little: a toy that learns.

Every reply is well-formed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.compose import compose
from mediffusion_core.evaluation.classification import exact_auc
from mediffusion_core.messaging.protocol import HEAD, HEAD_MOMENTS
from mediffusion_core.settings import Settings
from mediffusion_core.training.adam_moments import fresh_moments, load_moments, read_moments
from server.messages import Reply
from server.state import RunState
from server.strategy.strategy import Strategy

State = Mapping[str, Tensor]
FEATURES, CLASSES, PATIENTS, ROUNDS, STEPS, RATE = 12, 3, 60, 8, 10, 0.02
FALSE = 1
"""Number of the false site."""

Falsify = Callable[[State, State, list[Reply]], State]
"""Makes weights of those that were sent, those that training made, and others' replies."""


def by_change(change: Callable[[Tensor], Tensor]) -> Falsify:
    return lambda before, trained, _: {
        n: before[n] + change(trained[n] - before[n]) for n in before
    }


def noise(change: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 10 * change.square().mean().sqrt() * torch.randn(change.shape, generator=generator)


ATTACKS: dict[str, Falsify] = {
    "sign-flipped": by_change(torch.neg),
    "x1000": by_change(lambda change: 1000 * change),
    "x-1000": by_change(lambda change: -1000 * change),
    "x-3, below the bound": by_change(lambda change: -3 * change),
    "noise": by_change(noise),
    "untrained": by_change(torch.zeros_like),
    "stale": lambda before, trained, _: {n: torch.zeros_like(v) for n, v in before.items()},
    "copy": lambda before, trained, others: others[0].components[HEAD],
}


def patients(site: int, number: int) -> tuple[Tensor, Tensor]:
    """Features, whose mean differs by site, and findings by one rule for all."""
    generator = torch.Generator().manual_seed(site)
    rule = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(99))
    features = torch.randn(number, FEATURES, generator=generator) + 0.1 * site
    chance = torch.sigmoid(features @ rule)
    return features, torch.bernoulli(chance, generator=generator)


def trained(state: RunState, site: int, labels: Callable[[Tensor], Tensor]) -> Reply:
    features, targets = patients(site, PATIENTS)
    model = nn.Linear(FEATURES, CLASSES)
    model.load_state_dict(dict(state.weights[HEAD]))
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    load_moments(optimizer, model, state.weights[HEAD_MOMENTS])
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(features), labels(targets)).backward()
        optimizer.step()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    metrics = {"images_seen": 60.0, "labelled_seen": 60.0, "steps": float(STEPS)}
    moments = read_moments(optimizer, model)
    return Reply(f"site-{site}", {HEAD: weights, HEAD_MOMENTS: moments}, metrics)


def macro_auc(
    settings: Settings,
    folder: Path,
    falsify: Falsify | None,
    labels: Callable[[Tensor], Tensor] = lambda targets: targets,
    images: float = 60.0,
) -> float:
    """Of four sites, the second of which is false; of three where nothing falsifies it."""
    network = nn.Linear(FEATURES, CLASSES)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    weights = {HEAD: network.state_dict(), HEAD_MOMENTS: fresh_moments(network)}
    state, strategy = RunState(weights=dict(weights)), Strategy(settings, folder)
    for number in range(1, ROUNDS + 1):
        gathered = strategy.gather("joint", number, (HEAD, HEAD_MOMENTS), state)
        replies: list[Reply] = []
        for site in (0, 2, 3):
            replies.append(trained(state, site, lambda targets: targets))
        if falsify is not None:
            false = trained(state, FALSE, labels)
            made = falsify(state.weights[HEAD], false.components[HEAD], replies)
            metrics = {**false.metrics, "images_seen": images, "labelled_seen": images}
            replies.append(Reply(false.site, {**false.components, HEAD: made}, metrics))
        for one in replies:
            gathered.take(one)
        strategy.step(gathered, state)
    features, targets = patients(5, 1000)
    network.load_state_dict(dict(state.weights[HEAD]))
    return float(exact_auc(network(features).detach(), targets).mean())


@pytest.fixture(scope="module")
def robust() -> Settings:
    four = ("federation.num_sites=4", "data.phantom.patients_per_site=[9,9,9,9]")
    return compose("config", ["experiment=phantom_robust", *four])


@pytest.fixture(scope="module")
def without(robust: Settings, tmp_path_factory: pytest.TempPathFactory) -> float:
    auc = macro_auc(robust, tmp_path_factory.mktemp("without"), None)
    assert auc > 0.85
    return auc


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_false_site_costs_less_than_two_points(
    robust: Settings, without: float, tmp_path: Path, attack: str
) -> None:
    assert macro_auc(robust, tmp_path, ATTACKS[attack]) > without - 0.02


def test_so_do_flipped_labels_and_a_million_images(
    robust: Settings, without: float, tmp_path: Path
) -> None:
    honest = by_change(lambda change: change)
    assert macro_auc(robust, tmp_path, honest, lambda targets: 1 - targets) > without - 0.02
    assert macro_auc(robust, tmp_path, by_change(torch.neg), images=1e6) > without - 0.02


def test_the_mean_does_not_withstand_them(robust: Settings, without: float, tmp_path: Path) -> None:
    """Or else the toy would show nothing."""
    mean = compose("config", ["federation.num_sites=4", "data.phantom.patients_per_site=[9,9,9,9]"])
    for attack in ("x-1000", "noise"):
        assert macro_auc(mean, tmp_path, ATTACKS[attack]) < without - 0.05
    assert macro_auc(mean, tmp_path, by_change(torch.neg), images=1e6) < without - 0.05
