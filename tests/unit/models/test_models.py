"""The joint UNet against diffusers' own forward pass, and the latents' scale."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.inference.classify import (
    BATCH,
    classifier_views,
    classify_latents,
    symmetries,
)
from mediffusion_core.models import (
    Autoencoder,
    JointUNet,
    LatentCodec,
    build_unet,
    channel_sums,
    pooled_width,
    scale_from_sums,
    untrained_codec,
)
from mediffusion_core.models.unet import NONE
from mediffusion_core.settings import (
    AutoencoderSettings,
    DiffusionSettings,
    HeadSettings,
    UNetSettings,
)

LATENT = (4, 8, 8)
PROCESS = DiffusionProcess.of(DiffusionSettings())
AUTOENCODER = AutoencoderSettings(
    channels=(16, 16), layers_per_block=1, latent_channels=4, norm_groups=8
)


def unet_settings(
    channels: tuple[int, ...] = (32, 64, 64),
    attention: tuple[bool, ...] = (False, True, True),
    layers: int = 1,
) -> UNetSettings:
    return UNetSettings(
        channels=channels, attention=attention, layers_per_block=layers, norm_groups=16
    )


def joint(unet: UNetSettings | None = None, classes: int = 3) -> JointUNet:
    torch.manual_seed(0)
    model = JointUNet(unet or unet_settings(), HeadSettings(hidden=16), LATENT, classes)
    return model.eval()


def inputs(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, *LATENT, generator=generator)
    return latents, torch.tensor([0, 17, 999])[:count]


@pytest.mark.parametrize(
    "settings",
    [
        unet_settings(),
        unet_settings(layers=2),
        unet_settings((32, 64), (True, True)),
        unet_settings((32,), (False,)),
    ],
    ids=["three levels", "two blocks", "all attention", "one level"],
)
@torch.no_grad()
def test_noise_is_predicted_as_diffusers_predicts_it(settings: UNetSettings) -> None:
    model = joint(settings)
    latents, timesteps = inputs()
    expected = model.unet(latents, timesteps).sample
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(model.denoise(latents, timesteps), expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("channels", [(32,), (32, 64), (64, 32, 96)])
@torch.no_grad()
def test_the_pooled_width_equals_the_encoders_output(
    channels: tuple[int, ...], layers: int
) -> None:
    settings = unet_settings(channels, (False,) * len(channels), layers)
    seen: list[tuple[int, ...]] = []
    model = joint(settings)
    pooling = model.head.pooling
    pooling.register_forward_hook(lambda *given: seen.append(tuple(given[2].shape)))
    model(*inputs(2))
    assert seen == [(2, pooled_width(settings))]


@torch.no_grad()
def test_pooled_features_are_spatial_means_of_encoder_and_middle() -> None:
    model = joint()
    latents, timesteps = inputs()
    maps: list[Tensor] = []
    unet = model.unet
    hooks = [unet.conv_in.register_forward_hook(lambda *given: maps.append(given[2]))]
    hooks += [
        block.register_forward_hook(lambda *given: maps.extend(given[2][1]))
        for block in unet.down_blocks
    ]
    hooks.append(unet.mid_block.register_forward_hook(lambda *given: maps.append(given[2])))
    unet(latents, timesteps)
    for hook in hooks:
        hook.remove()
    pooled = torch.cat([one.flatten(2).mean(dim=2) for one in maps], dim=1)
    layers = nn.Sequential(*list(model.head)[1:])
    torch.testing.assert_close(model.classify(latents, timesteps), layers(pooled))


@torch.no_grad()
def test_logits_come_from_the_encoder_alone() -> None:
    model = joint()
    latents, timesteps = inputs()
    _, before = model(latents, timesteps)
    no_noise, alone = model(latents, timesteps, denoise=NONE)
    assert no_noise is None
    torch.testing.assert_close(alone, before, rtol=0, atol=0)
    for block in (model.unet.up_blocks, model.unet.conv_out, model.unet.conv_norm_out):
        for parameter in block.parameters():
            parameter.fill_(float("nan"))
    torch.testing.assert_close(model(latents, timesteps)[1], before, rtol=0, atol=0)


@torch.no_grad()
def test_noise_does_not_come_from_the_head() -> None:
    model = joint()
    latents, timesteps = inputs()
    before = model.denoise(latents, timesteps)
    for parameter in model.head.parameters():
        parameter.fill_(float("nan"))
    noise_pred, logits = model(latents, timesteps, classify=NONE)
    assert logits is None
    torch.testing.assert_close(noise_pred, before, rtol=0, atol=0)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
@torch.no_grad()
def test_each_row_equals_its_result_alone(start: int, stop: int, first: int, last: int) -> None:
    """Rows that are denoised, classified, both or neither share one pass of the encoder."""
    model = joint()
    latents = torch.randn(5, *LATENT)
    timesteps = torch.tensor([0, 10, 200, 500, 999])
    denoised, classified = slice(start, stop), slice(first, last)
    noise_pred, logits = model(latents, timesteps, denoised, classified)
    for found, rows, of_all in (
        (noise_pred, denoised, model.denoise(latents, timesteps)),
        (logits, classified, model.classify(latents, timesteps)),
    ):
        if found is None:
            assert not len(latents[rows])
        else:
            torch.testing.assert_close(found, of_all[rows])


@torch.no_grad()
def test_clean_latents_are_classified_at_the_first_level() -> None:
    model = joint()
    latents, _ = inputs()
    zero = torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(model.classify(latents), model.classify(latents, zero))
    assert not torch.allclose(model.classify(latents), model.classify(latents, zero + 500))


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other() -> None:
    model = joint()
    latents, timesteps = inputs()
    together = model(latents, timesteps)
    for row in range(3):
        alone = model(latents[row : row + 1], timesteps[row : row + 1])
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[row : row + 1], part, rtol=1e-4, atol=1e-5)


def test_the_reference_has_258_million_parameters() -> None:
    settings = compose("config", ["model=paper", "data.image_size=256"])
    assert settings.latent_shape == (4, 32, 32)
    assert pooled_width(settings.model.unet) == 5632
    with torch.device("meta"):
        unet = build_unet(settings.model.unet, settings.latent_shape)
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(257.7e6, abs=0.05e6)


def test_a_level_too_narrow_for_attention_is_refused_before_it_is_built() -> None:
    narrow = ["model.unet.channels=[16,16,16]", "model.unet.norm_groups=16"]
    narrow += ["model.unet.attention=[false,false,false]"]
    with pytest.raises(UserError, match="attention_head_width"):
        compose("config", narrow)


@torch.no_grad()
def test_the_codec_scales_the_latents_of_the_autoencoder() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODER, 1)
    mean, std = torch.tensor([1.0, 0.0, -2.0, 3.0]), torch.tensor([2.0, 1.0, 0.5, 4.0])
    codec = LatentCodec(autoencoder, mean, std)
    images = torch.rand(2, 1, 16, 16)
    raw = autoencoder.encode(images).mode()
    scaled = codec.encode(images)
    assert scaled.shape == (2, 4, 8, 8)
    for channel in range(4):
        torch.testing.assert_close(
            scaled[:, channel] * std[channel] + mean[channel], raw[:, channel]
        )
    expected = autoencoder.decode(raw).clamp(0, 1)
    torch.testing.assert_close(codec.decode(scaled), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("patch", "widths"), [(1, 3), (2, 2), (4, 1)])
def test_patches_take_the_place_of_levels(patch: int, widths: int) -> None:
    settings = AUTOENCODER.model_copy(
        update={"patch_size": patch, "channels": (16,) * widths, "attention": False}
    )
    assert settings.downsampling == 4
    autoencoder = Autoencoder(settings, 3)
    images = torch.rand(2, 3, 16, 24)
    latents = autoencoder.encode(images).mode()
    assert latents.shape == (2, 4, 4, 6)
    assert autoencoder.decode(latents).shape == images.shape


@torch.no_grad()
def test_without_patches_it_is_diffusers_network_between_images_of_0_to_1(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODER, 1).eval()
    autoencoder.kl.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path).eval()
    images = torch.rand(2, 1, 16, 16)
    posterior = loaded.encode(images * 2 - 1).latent_dist
    torch.testing.assert_close(autoencoder.encode(images).mode(), posterior.mode())
    decoded = loaded.decode(posterior.mode()).sample / 2 + 0.5
    torch.testing.assert_close(autoencoder.decode(posterior.mode()), decoded)


@torch.no_grad()
def test_a_patch_becomes_the_channels_of_its_own_place() -> None:
    settings = AUTOENCODER.model_copy(update={"patch_size": 2})
    autoencoder = Autoencoder(settings, 1)
    seen: list[Tensor] = []
    autoencoder.kl.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = torch.full((1, 1, 8, 8), 0.5)
    images[..., 2:4, 4:6] = 1.0
    autoencoder.encode(images)
    assert seen[0].shape == (1, 4, 4, 4)
    assert seen[0].nonzero().tolist() == [[0, channel, 1, 2] for channel in range(4)]


def test_a_codec_is_frozen_and_keeps_its_scale_in_its_state() -> None:
    codec = LatentCodec(Autoencoder(AUTOENCODER, 1), torch.ones(4), torch.full((4,), 3.0))
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    fresh = untrained_codec(AUTOENCODER, 1)
    fresh.load_state_dict(codec.state_dict())
    images = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(fresh.encode(images), codec.encode(images))
    assert fresh.std.flatten().tolist() == [3.0] * 4


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_the_pooled_scale_is_that_of_all_sites_images_together(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    autoencoder = Autoencoder(AUTOENCODER, 1).eval()
    sites = [torch.rand(size, 1, 16, 16) for size in sizes]
    parts = [channel_sums(autoencoder, images) for images in sites]
    mean, std = scale_from_sums(
        sum((part[0] for part in parts), torch.zeros(4)),
        sum((part[1] for part in parts), torch.zeros(4)),
        sum(part[2] for part in parts),
    )
    latents = autoencoder.encode(torch.cat(sites)).mode().double()
    by_channel = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, by_channel.mean(dim=1).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        std, by_channel.std(dim=1, correction=0).float(), rtol=1e-3, atol=1e-5
    )
    scaled = LatentCodec(autoencoder, mean, std).encode(torch.cat(sites))
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        scaled.std(dim=(0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-2
    )


def test_a_channel_without_spread_is_not_divided_by_nothing() -> None:
    mean, std = scale_from_sums(torch.tensor([8.0]), torch.tensor([16.0]), 4)
    assert mean.tolist() == [2.0]
    assert std.tolist() == pytest.approx([1e-3])


def test_a_spread_below_the_noise_of_its_sums_is_not_divided_by() -> None:
    total, squares = torch.zeros(3), torch.tensor([-5.0, 0.5, 400.0])
    _, std = scale_from_sums(total, squares, 100, uncertainty=1.0)
    assert std.tolist() == pytest.approx([0.1, 0.1, 2.0])


def test_an_orientation_free_classifier_cannot_be_swayed_by_a_turn_or_a_mirror() -> None:
    model, (latents, _) = joint(), inputs()
    expected = classify_latents(model, latents, orientation_free=True)
    for turned in (latents.rot90(1, (2, 3)), latents.flip(2), latents.flip(3).rot90(3, (2, 3))):
        held_plainly = classify_latents(model, turned, orientation_free=False)
        assert (held_plainly - classify_latents(model, latents, orientation_free=False)).abs().max()
        logits = classify_latents(model, turned, orientation_free=True)
        torch.testing.assert_close(logits, expected)


def test_orientation_free_logits_are_the_mean_over_the_eight_symmetries() -> None:
    model, (latents, _) = joint(), inputs()
    flat = {bytes(view.contiguous().numpy()) for view in symmetries(latents)}
    assert len(flat) == 8
    with torch.no_grad():
        expected = torch.stack([model.classify(view) for view in symmetries(latents)]).mean(dim=0)
    logits = classify_latents(model, latents, orientation_free=True)
    torch.testing.assert_close(logits, expected)


def test_logits_in_batches_are_those_of_each_latent_alone() -> None:
    model = joint()
    latents = torch.randn(BATCH + 3, *LATENT, generator=torch.Generator().manual_seed(2)).half()
    logits = classify_latents(model, latents, orientation_free=False)
    with torch.no_grad():
        last = model.classify(latents[-1:].float())
    torch.testing.assert_close(logits[-1:], last, rtol=1e-4, atol=1e-5)
    assert logits.shape == (BATCH + 3, 3) and not logits.requires_grad


def test_logits_at_noise_levels_are_the_mean_over_the_noised_latents() -> None:
    model, (latents, _) = joint(), inputs()
    views = classifier_views([0.0, 0.25], PROCESS, LATENT, seed=3)
    t = round(0.25 * 999)
    generator = torch.Generator().manual_seed(3)
    torch.randn(LATENT, generator=generator)
    noise = torch.randn(LATENT, generator=generator).expand_as(latents)
    noised = PROCESS.add_noise(latents, noise, t)
    with torch.no_grad():
        seen = model.classify(latents), model.classify(noised, torch.full((len(latents),), t))
    assert not torch.allclose(*seen)
    logits = classify_latents(model, latents, orientation_free=False, views=views)
    torch.testing.assert_close(logits, torch.stack(seen).mean(dim=0))


def test_a_view_of_the_clean_latent_adds_no_noise() -> None:
    model, (latents, _) = joint(), inputs()
    with torch.no_grad():
        expected = model.classify(latents)
    for views in ((), classifier_views([0.0], PROCESS, LATENT, seed=9)):
        assert torch.equal(
            classify_latents(model, latents, orientation_free=False, views=views), expected
        )


def test_noise_depends_on_the_seed_and_on_no_other_latent() -> None:
    model, (latents, _) = joint(), inputs()

    def logits(seed: int, given: Tensor = latents) -> Tensor:
        views = classifier_views([0.1, 1.0], PROCESS, LATENT, seed)
        return classify_latents(model, given, orientation_free=False, views=views)

    assert torch.equal(logits(1), logits(1)) and not torch.equal(logits(1), logits(2))
    torch.testing.assert_close(logits(1, latents[2:]), logits(1)[2:])


def test_an_orientation_free_classifier_stays_so_through_noise() -> None:
    model, (latents, _) = joint(), inputs()
    views = classifier_views([0.2], PROCESS, LATENT, seed=0)
    logits = [
        classify_latents(model, held, orientation_free=True, views=views)
        for held in (latents, latents.rot90(1, (2, 3)), latents.flip(3))
    ]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0])
