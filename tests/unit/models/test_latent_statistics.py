"""Moments of latents: their values, their invariances, and their use by the classifier."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.compose import compose
from mediffusion_core.inference.classify import symmetries
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.models.latent_statistics import FLOOR, PER_CHANNEL, latent_statistics
from mediffusion_core.models.unet import pooled_width


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


def test_the_classifier_reads_them_beside_the_maps(tiny: tuple[str, ...]) -> None:
    settings = compose(
        "config", (*tiny, "model.head.latent_statistics=true", "model.head.dropout=0")
    )
    channels = settings.latent_shape[0]
    of_moments = PER_CHANNEL * channels
    joint = build_joint(settings, 2).eval()
    layers = [joint.head.get_submodule(name) for name in ("1", "2", "4")]
    linear = layers[0]
    assert linear.in_features == of_moments + pooled_width(settings.model.unet)
    latents = torch.randn(4, *settings.latent_shape)
    before = joint.classify(latents)
    with torch.no_grad():
        linear.weight[:, of_moments:] = 0.0
        hidden = latent_statistics(latents) @ linear.weight[:, :of_moments].T + linear.bias
        expected = layers[2](layers[1](hidden))
    alone = joint.classify(latents)
    torch.testing.assert_close(alone, expected)
    assert not torch.allclose(before, alone)
