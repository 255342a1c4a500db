"""The noise, the sampling, and the steps that are made of them."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.toy import PROCESS, generator, joint_training, toy_network
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from configs.compose import compose
from mediffusion_core.models import Autoencoder
from mediffusion_core.privacy.accounting.noisy_statistics import (
    latent_bound,
    noised_counts,
    noised_latent_sums,
)
from mediffusion_core.privacy.dp_sgd.joint_stage import train_private_joint, training_parts
from mediffusion_core.privacy.dp_sgd.noise import Mechanism, private_gradients
from mediffusion_core.privacy.dp_sgd.per_sample_clipping import TOLERANCE, PerSampleGradients
from mediffusion_core.privacy.dp_sgd.private_round import PrivateRound
from mediffusion_core.privacy.dp_sgd.randomness import PART, normal, poisson_sample, uniform
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.joint import joint_optimizer
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_round import LocalRound
from unit.privacy.dp_sgd.test_per_sample_clipping import Plain, Rows


def test_noise_is_normal_and_never_the_same() -> None:
    count = 4 * PART + 1  # two full parts, and one number of a third
    drawn = normal(torch.Size([count]))
    assert drawn.shape == (count,) and drawn.dtype == torch.float64
    assert kstest(drawn.numpy(), "norm").pvalue > 1e-6
    assert abs(float(drawn[:-1:2] @ drawn[1::2])) < 6 * (count / 2) ** 0.5
    assert len(drawn.unique()) == count  # no part is drawn twice
    torch.manual_seed(0)
    first = normal(torch.Size([3]))
    torch.manual_seed(0)
    assert not torch.equal(first, normal(torch.Size([3])))


def test_uniform_numbers_are_never_zero() -> None:
    drawn = uniform(10_000)
    assert drawn.min() > 0 and drawn.max() <= 1 and abs(drawn.mean() - 0.5) < 0.02


@given(st.integers(0, 300), st.floats(0.01, 1.0))
def test_a_poisson_sample_is_distinct_and_ascending(units: int, rate: float) -> None:
    drawn = poisson_sample(units, rate)
    assert drawn.tolist() == sorted(set(drawn.tolist())) and set(drawn.tolist()) <= set(
        range(units)
    )
    if rate == 1.0:
        assert len(drawn) == units


def test_units_are_drawn_independently_at_the_rate() -> None:
    counts = [len(poisson_sample(100, 0.2)) for _ in range(300)]
    mean = sum(counts) / 300
    variance = sum((count - mean) ** 2 for count in counts) / 299
    assert abs(mean - 20) < 1.5 and 10 < variance < 24  # 100 · 0.2 · 0.8 = 16


def stepped(
    num_units: int, rate: float, noise: float, physical: int = 2, bound: float = 1.0
) -> torch.Tensor:
    network = Plain().train()
    inputs = torch.eye(3).repeat(4, 1)[:num_units]
    mechanism = Mechanism(rate, noise, bound, 10.0, physical)
    with PerSampleGradients(network, lambda rows: network(rows.inputs), "flat", bound) as gradients:
        private_gradients(gradients, lambda units: Rows(inputs[units]), mechanism, num_units)
    assert network.layer.weight.grad is not None
    return network.layer.weight.grad.flatten()


@pytest.mark.parametrize("physical", [1, 2, 5, 16])
def test_virtual_batches_add_up_and_are_divided_by_a_constant(physical: int) -> None:
    """Twelve units, four along each axis, all drawn; the divisor is 10, whatever was drawn."""
    each = 0.1 * (1 - TOLERANCE)  # what clipping leaves of a unit's axis
    assert stepped(12, 1.0, 1e-9, physical).tolist() == pytest.approx([4 * each] * 3, rel=1e-6)


@pytest.mark.parametrize("bound", [1.0, 3.0])
def test_an_empty_sample_is_noise_alone(bound: float) -> None:
    drawn = torch.stack([stepped(0, 0.5, 2.0, bound=bound) for _ in range(300)])
    # σ C / B = 2 · C / 10
    assert abs(float(drawn.std()) - 0.2 * bound) < 0.03 * bound
    assert abs(float(drawn.mean())) < 0.03 * bound


def latents_of(brightness: Sequence[float], noise: float) -> dict[str, torch.Tensor]:
    """Noised sums over units of one image each; the encoder gives the image itself, grey."""

    class Grey(Autoencoder):
        def encode(self, images: torch.Tensor) -> Any:
            return SimpleNamespace(mode=lambda: images.expand(-1, 4, -1, -1))

    settings = compose("config", ["model=tiny32", "data.image_size=32"]).model.autoencoder
    pixels = torch.tensor(brightness)[:, None, None, None].expand(-1, 1, 8, 8)
    images = SimpleNamespace(take=lambda rows: pixels[rows])
    index = UnitIndex(
        torch.arange(len(brightness)), [str(number) for number in range(len(brightness))]
    )
    return noised_latent_sums(Grey(settings, 1), images, index, 7, noise)  # type: ignore[arg-type]


def test_one_unit_moves_the_latent_sums_by_no_more_than_the_bound() -> None:
    tame, wild = latents_of([0.5, 0.5], 1e-9), latents_of([0.5, 1e4], 1e-9)
    assert float(tame["total"][0]) == pytest.approx(1.0)
    assert float(tame["squares"][0]) == pytest.approx(0.5)
    alone = [wild[name] - tame[name] / 2 for name in ("total", "squares")]
    assert float(torch.cat(alone).norm()) == pytest.approx(latent_bound(4), rel=1e-6)
    assert float(wild["count"]) == 7


def test_the_noise_of_latent_sums_is_that_of_the_bound() -> None:
    drawn = [
        torch.cat([s["total"], s["squares"]]) for s in (latents_of([], 2.0) for _ in range(60))
    ]
    assert float(torch.stack(drawn).std()) == pytest.approx(2.0 * latent_bound(4), rel=0.15)


def test_counts_have_noise_and_stay_counts() -> None:
    drawn = [noised_counts(1000, 300, 5.0) for _ in range(300)]
    units = torch.tensor([float(one.units) for one in drawn])
    assert drawn[0].deviation == pytest.approx(5 * 2**0.5)
    assert abs(float(units.mean()) - 1000) < 2 and abs(float(units.std()) - 7.07) < 1.2
    few = [noised_counts(0, 0, 50.0) for _ in range(50)]
    assert all(one.units >= 1 and 0 <= one.labelled <= one.units for one in few)


def private(**changes: object) -> PrivacySettings:
    given: dict[str, object] = {"enabled": True, "noise_multiplier": 1.0, "physical_batch_size": 3}
    return PrivacySettings.model_validate(given | changes)


def latents() -> LatentSet:
    drawn = torch.randn(12, 2, 8, 8, generator=generator()).half()
    targets = torch.full((12, 2), torch.nan)
    targets[:4] = torch.eye(2).repeat(2, 1)
    return LatentSet(drawn, drawn[None, :4], targets, multi_label=False)


def trained(privacy: PrivacySettings, noise: float, steps: int = 2, **changes: object):
    model = toy_network()
    training = joint_training(warmup_steps=0, **changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = joint_optimizer(model, training)
    with training_parts(model, optimizer, training, privacy):
        train_private_joint(
            model,
            optimizer,
            latents(),
            training,
            PROCESS,
            PrivateRound(
                index=UnitIndex(torch.arange(12) // 2, list("abcdef")),
                mechanism=Mechanism(0.5, noise, 1.0, 3.0, privacy.physical_batch_size),
                privacy=privacy,
                steps=steps,
                current=LocalRound(1, 1, seed=0),
            ),
        )
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}, model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "ghost"},
        {"clipping": "per_layer"},
        {"mode": "ghost", "clipping": "per_layer"},
        {"noise_multiplicity": 3},
    ],
)
def test_a_private_round_moves_every_weight(changes: dict[str, object]) -> None:
    moved, model = trained(private(**changes), noise=0.5)
    assert moved == {name for name, _ in model.named_parameters()}
    assert all(p.isfinite().all() for p in model.parameters())


def test_only_the_named_part_is_trained() -> None:
    given = {"public_model": "elsewhere", "trained": "head"}
    moved, _ = trained(private(**given), noise=0.5)
    assert moved and all(name.startswith("head.") for name in moved)
    moved, _ = trained(private(), noise=0.5, diffusion_weight=0.0)
    assert any("down_blocks" in name for name in moved)
    assert not any("up_blocks" in name for name in moved)


def test_the_same_private_round_twice_differs() -> None:
    first, second = (trained(private(), noise=1.0, steps=1)[1] for _ in range(2))
    weights = [model.unet.conv_in.weight for model in (first, second)]
    assert not torch.equal(*weights)
