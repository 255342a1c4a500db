"""External guidance, and the calibration of its classifier."""

import numpy as np
import pytest
import torch
from helpers.untrained import untrained_model
from torch import Tensor, nn

from configs.compose import compose
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.baselines.external_guidance import external_latents
from simulations.baselines.pixel_classifier import PixelClassifier
from simulations.baselines.pooled_resnet import calibrated


class Brightness(nn.Module):
    """Three logits that rise with the brightness of an image, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images.mean(dim=(1, 2, 3))[:, None] * torch.tensor([1.0, -1.0, 2.0])


def bright(factor: float, temperature: float) -> PixelClassifier:
    return PixelClassifier(Brightness(factor), True, False, "fp32", temperature)


@pytest.fixture(scope="module")
def model(tiny: tuple[str, ...]) -> TrainedModel:
    return untrained_model(compose("config", tiny), "abc")


def test_external_guidance_uses_calibrated_probabilities(
    model: TrainedModel,
) -> None:
    latents = torch.randn(2, *model.settings.latent_shape)
    target = Target(torch.tensor([0, 2]), torch.tensor([True, False]), True)
    guidance = model.settings.evaluation.counterfactual
    detail = torch.zeros(2, 1, 32, 32)
    plain, louder, unfit = (
        external_latents(model, bright(factor, temperature), latents, target, guidance, detail)
        for factor, temperature in ((20.0, 1.0), (60.0, 3.0), (60.0, 1.0))
    )
    torch.testing.assert_close(louder, plain, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(unfit, plain, rtol=1e-3, atol=1e-3)


def test_an_overconfident_classifier_is_calibrated_on_other_images() -> None:
    """Labels are drawn with the probabilities of logits a quarter as large."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (600, 8, 8, 1), generator=generator, dtype=torch.uint8)
    pixels = (pixels.float() * torch.rand(600, 1, 1, 1, generator=generator)).byte()
    classifier = bright(8.0, 1.0)
    right = classifier.logits(pixels.permute(0, 3, 1, 2).float() / 255) / 4
    targets = torch.bernoulli(right.sigmoid(), generator=generator)
    images = ImageSet(pixels.numpy(), np.arange(600), targets)
    assert calibrated(classifier, images).temperature == pytest.approx(4.0, rel=0.25)
