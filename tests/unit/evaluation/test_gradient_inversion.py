"""Images from gradients: the gradient by hand, clipping and noise, and latents found again."""

import math

import pytest
import torch

from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.evaluation.gradient_inversion import (
    Inversion,
    Step,
    decoder_parameters,
    denoising_gradient,
    invert,
    private_gradient,
    total_variation,
)
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import DiffusionSettings, HeadSettings, UNetSettings

SHAPE = (2, 8, 8)


@pytest.fixture(scope="module")
def model() -> JointUNet:
    torch.manual_seed(0)
    unet = UNetSettings(channels=(32, 32), attention=(False, True), layers_per_block=1)
    return JointUNet(unet, HeadSettings(hidden=8), SHAPE, 3).eval()


@pytest.fixture(scope="module")
def step() -> Step:
    process = DiffusionProcess.of(DiffusionSettings(timesteps=100, prediction="v_prediction"))
    generator = torch.Generator().manual_seed(1)
    return Step(process, torch.tensor([60]), torch.randn(1, *SHAPE, generator=generator))


def smooth_latents() -> torch.Tensor:
    """A latent (1, c, 8, 8) with structure, as images have it."""
    x = torch.linspace(-1, 1, 8)
    return torch.stack([x[None, :] * x[:, None], (3 * x).sin()[None, :] + x[:, None]])[None]


def test_the_gradient_is_that_of_the_mean_loss(model: JointUNet, step: Step) -> None:
    latents = smooth_latents()
    noised = step.process.add_noise(latents, step.noise, step.timesteps)
    target = step.process.target(latents, step.noise, step.timesteps)
    loss = (model.denoise(noised, step.timesteps) - target).square().mean()
    model.zero_grad()
    loss.backward()
    parameters = decoder_parameters(model)
    assert not any(name.startswith(("down_blocks", "mid_block", "conv_in")) for name in parameters)
    expected = torch.cat([one.grad.flatten() for one in parameters.values()])
    assert torch.allclose(denoising_gradient(model, latents, step), expected, atol=1e-6)


def test_a_latent_is_found_from_its_gradient_and_not_from_a_private_one(
    model: JointUNet, step: Step
) -> None:
    latents = smooth_latents()
    observed = denoising_gradient(model, latents, step)
    private = private_gradient(observed, 1.0, 0.6, torch.Generator().manual_seed(3))
    how = Inversion(steps=80, variation_weight=1e-4)
    errors = [
        float((invert(model, one, step, lambda z: z, how) - latents).square().mean())
        for one in (observed, private)
    ]
    assert errors[0] < 0.1 * float(latents.var())
    assert errors[1] > 0.5 * float(latents.var())


def test_the_private_gradient_is_clipped_and_noised() -> None:
    generator = torch.Generator().manual_seed(0)
    long, short = torch.full((50_000,), 1.0), torch.zeros(50_000)
    short[0] = 0.25
    assert torch.allclose(private_gradient(long, 0.5, 0.0, generator), 0.5 * long / long.norm())
    assert torch.equal(private_gradient(short, 0.5, 0.0, generator), short)
    noise = private_gradient(short, 0.5, 3.0, generator) - short
    assert float(noise.std()) == pytest.approx(3.0 * 0.5, rel=0.02)


def test_total_variation_by_hand() -> None:
    images = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    assert total_variation(images).item() == pytest.approx((0.5 + 0.5) / 2 + (1.0 + 0.0) / 2)
    assert total_variation(torch.full((2, 1, 4, 4), math.pi)).item() == 0
