"""Moments of latents: their values, their invariances, and their use by the classifier."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.classify import symmetries
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.models.latent_statistics import FLOOR, PER_CHANNEL, latent_statistics


def drawn(side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 2, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [4, 8, 16])
def test_moments_equal_numpys_for_each_channel(side: int) -> None:
    latents = drawn(side)
    found = latent_statistics(latents).reshape(3, PER_CHANNEL, 2)
    for image in range(3):
        for channel in range(2):
            x = latents[image, channel].double().numpy()
            middle = x[side // 4 : -side // 4, side // 4 : -side // 4]
            steps = [abs(x[i, j] - x[i + 1, j]) for i in range(side - 1) for j in range(side)]
            steps += [abs(x[i, j] - x[i, j + 1]) for i in range(side) for j in range(side - 1)]
            expected = [
                x.mean(),
                middle.mean(),
                np.log(np.hypot(x.std(), FLOOR)),
                np.log(np.hypot(middle.std(), FLOOR)),
                np.log(np.mean(steps) + FLOOR),
            ]
            np.testing.assert_allclose(found[image, :, channel], expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 50), st.integers(2, 17))
def test_no_turn_and_no_mirror_changes_them(seed: int, side: int) -> None:
    latents = drawn(side, seed)
    expected = latent_statistics(latents)
    for held in symmetries(latents):
        torch.testing.assert_close(latent_statistics(held), expected, rtol=1e-4, atol=1e-4)


def test_an_even_latent_has_finite_moments_and_slopes() -> None:
    latents = torch.zeros(1, 2, 8, 8, requires_grad=True)
    moments = latent_statistics(latents)
    moments.sum().backward()
    assert moments.isfinite().all()
    assert latents.grad is not None and latents.grad.isfinite().all()


def test_the_classifier_takes_contrasts_of_them_in_place_of_the_maps(
    tiny: tuple[str, ...],
) -> None:
    settings = compose(
        "config", (*tiny, "model.head.latent_statistics=true", "model.head.hidden=0")
    )
    joint = build_joint(settings, 2).eval()
    linear = joint.head.get_submodule("1")
    assert isinstance(linear, torch.nn.Linear)
    channels = settings.latent_shape[0]
    assert linear.in_features == PER_CHANNEL * channels
    latents = torch.randn(4, *settings.latent_shape)
    assert (joint.classify(latents) == 0).all()  # every class is as probable before training
    with torch.no_grad():
        linear.weight.normal_()
    mean, middle, log_s, log_s_middle, log_d = latent_statistics(latents).chunk(PER_CHANNEL, dim=1)
    expected = torch.cat(
        [
            2 * mean,
            2 * (middle - mean),
            2 * log_s + 1,
            2 * (log_s_middle - log_s),
            2 * (log_d - log_s) + 1.5,
        ],
        dim=1,
    )
    torch.testing.assert_close(joint.classify(latents), linear(expected))


def test_classification_of_statistics_needs_no_unet(tiny: tuple[str, ...]) -> None:
    settings = compose("config", (*tiny, "model.head.latent_statistics=true"))
    joint = build_joint(settings, 2).eval()
    latents, steps = torch.randn(3, *settings.latent_shape), torch.zeros(3, dtype=torch.long)
    noise_pred, logits = joint(latents, steps)
    with torch.no_grad():
        for parameter in joint.unet.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(joint.classify(latents), logits)
    assert noise_pred.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        "model.head.pooling=attention",
        "model.head.normalised=true",
        "training.joint.alignment.weight=1",
    ],
)
def test_settings_of_maps_are_refused_beside_statistics(change: str, tiny: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"latent_statistics=true pools no maps"):
        compose("config", (*tiny, "model.head.latent_statistics=true", change))
