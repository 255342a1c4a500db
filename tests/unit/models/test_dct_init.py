"""An autoencoder that starts as a cosine transform of patches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.models import Autoencoder
from mediffusion_core.models.dct_init import patch_basis
from mediffusion_core.settings import AutoencoderSettings

ISIC = ("experiment=isic2019_4centres", "data.root=none")


def starting(latents: int, channels: int = 3, patch: int = 2, groups: int = 16) -> Autoencoder:
    torch.manual_seed(0)
    settings = AutoencoderSettings(
        channels=(64,),
        layers_per_block=1,
        latent_channels=latents,
        norm_groups=groups,
        patch_size=patch,
        attention=True,
        linear_start=True,
    )
    return Autoencoder(settings, channels).eval()


def smooth_images(channels: int, count: int = 8, side: int = 16) -> Tensor:
    """Colour fields with edges and a little texture, in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    fields = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    texture = 0.03 * torch.randn(count, channels, side, side, generator=generator)
    return (fields + texture).clamp(0, 1)


@given(st.integers(1, 4), st.integers(1, 5))
def test_the_basis_is_orthonormal_and_begins_with_the_mean(channels: int, patch: int) -> None:
    basis = patch_basis(channels, patch)
    torch.testing.assert_close(basis @ basis.T, torch.eye(channels * patch**2), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis[0], torch.full_like(basis[0], 1 / math.sqrt(len(basis))))


def test_whole_patches_colours_come_first_then_brightness_within_them() -> None:
    basis = patch_basis(3, 2).reshape(12, 3, 2, 2)
    assert torch.allclose(basis[:3], basis[:3, :, :1, :1].expand(-1, -1, 2, 2), atol=1e-6)
    assert torch.allclose(basis[3:6], basis[3:6, :1].expand(-1, 3, -1, -1), atol=1e-6)
    opponent = basis[1, :, 0, 0]
    assert opponent.sum().abs() < 1e-6 and opponent[1].abs() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize(("latents", "channels", "patch", "groups"), [(6, 3, 2, 16), (4, 1, 4, 4)])
def test_untrained_it_reconstructs_from_its_coefficients(
    latents: int, channels: int, patch: int, groups: int
) -> None:
    autoencoder = starting(latents, channels, patch, groups)
    images = smooth_images(channels)
    posterior = autoencoder.encode(images)
    patches = torch.nn.functional.pixel_unshuffle(images * 2 - 1, patch)
    basis = patch_basis(channels, patch)[:latents]
    kept = torch.einsum("kn,kc,bchw->bnhw", basis, basis, patches)
    expected = (torch.nn.functional.pixel_shuffle(kept, patch) + 1) / 2
    torch.testing.assert_close(autoencoder.decode(posterior.mode()), expected, rtol=0, atol=0.03)
    mean = patches.mean(dim=1)
    torch.testing.assert_close(posterior.mode()[:, 0], mean, rtol=0, atol=0.02)
    assert float((posterior.logvar + 8).abs().max()) < 1e-4


@torch.no_grad()
def test_with_all_coefficients_next_to_nothing_is_lost() -> None:
    images = smooth_images(3)
    decoded = starting(12).decode(starting(12).encode(images).mode())
    assert float((decoded - images).square().mean()) < 1e-4  # 40 dB


def test_every_layer_learns_from_there() -> None:
    autoencoder = starting(6).train()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=1e-4)
    before = {name: value.detach().clone() for name, value in autoencoder.named_parameters()}
    images, losses = smooth_images(3), []
    for _ in range(12):
        posterior = autoencoder.encode(images)
        loss = (autoencoder.decode(posterior.sample()) - images).abs().mean()
        loss = loss + 1e-4 * posterior.kl().mean() / images[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # Keys do not change attention's weights, which softmax makes of differences alone.
    still = [
        name
        for name, value in autoencoder.named_parameters()
        if torch.equal(value, before[name]) and "to_k.bias" not in name
    ]
    assert not still
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.autoencoder.channels=[64, 64]",), "one level"),
        (("model.autoencoder.norm_groups=32",), "32 channels make groups of 4"),
        (("model.autoencoder.latent_channels=9",), "32 channels carry 8"),
        (
            ("model.autoencoder.channels=[64]", "model.autoencoder.latent_channels=13"),
            "at most 12",
        ),
    ],
)
def test_settings_without_such_a_start_are_refused(
    overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compose("config", (*ISIC, *overrides))


def test_a_private_run_may_keep_it() -> None:
    dp = ("privacy=dp", "privacy.autoencoder=frozen", "training.joint.consistency.weight=0")
    assert compose("config", [*ISIC, *dp]).autoencoder_rounds == 0
