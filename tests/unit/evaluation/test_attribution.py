"""Maps of attribution where the classifier is linear, and the evaluation of maps."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.gaussian import GaussianData
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from mediffusion_core.evaluation.attribution import (
    expected_gradients,
    grad_cam,
    integrated_gradients,
)
from mediffusion_core.evaluation.faithfulness import (
    area,
    deletion_curve,
    insertion_curve,
    rank_agreement,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def linear() -> Any:
    """A model without an autoencoder, whose two findings are ten times the mean of either half."""
    codec = SimpleNamespace(encode=lambda images: images)
    head = GaussianData(0.0, 1.0)
    return SimpleNamespace(codec=codec, joint=head, multi_label=True, device=torch.device("cpu"))


INDEX = torch.tensor([0, 1, 0])
SLOPE = 10 / (2 * 4 * 8)
"""Of a finding by one of the 2 x 4 x 8 values of its half."""


def halves() -> Tensor:
    """Which pixels each image's finding lives on, (3, 8, 8)."""
    mask = torch.zeros(3, 8, 8)
    mask[[0, 2], :4], mask[1, 4:] = 1.0, 1.0
    return mask


def test_integrated_gradients_of_a_linear_model_are_slope_times_difference() -> None:
    images, baseline = draw(3, 2, 8, 8), draw(2, 8, 8, seed=1)
    maps = integrated_gradients(linear(), images, INDEX, baseline)
    expected = SLOPE * (images - baseline).sum(dim=1) * halves()
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


def test_expected_gradients_are_the_mean_over_baselines() -> None:
    images, baselines = draw(3, 2, 8, 8), draw(5, 2, 8, 8, seed=1)
    one = expected_gradients(linear(), images, INDEX, baselines[:1], seed=0)
    expected = SLOPE * (images - baselines[0]).sum(dim=1) * halves()
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-6)
    many = expected_gradients(linear(), images, INDEX, baselines, seed=0, samples=2000)
    expected = SLOPE * (images - baselines.mean(dim=0)).sum(dim=1) * halves()
    torch.testing.assert_close(many, expected, rtol=0.0, atol=0.02)


def test_the_draws_depend_on_the_seed_alone() -> None:
    images, baselines = draw(3, 2, 8, 8), draw(5, 2, 8, 8, seed=1)
    torch.manual_seed(7)
    first = torch.rand(1)
    torch.manual_seed(7)
    maps = expected_gradients(linear(), images, INDEX, baselines, seed=3, samples=4)
    assert torch.equal(torch.rand(1), first)
    again = expected_gradients(linear(), images[1:], INDEX[1:], baselines, seed=3, samples=4)
    torch.testing.assert_close(maps[1:], again)
    other = expected_gradients(linear(), images, INDEX, baselines, seed=4, samples=4)
    assert not torch.equal(maps, other)


class Pooled(nn.Module):
    """Three convolutions, the last on half of the positions; the logit is the sum of all means."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 3, 1, bias=False)
        self.second = nn.Conv2d(3, 2, 1, bias=False)
        self.third = nn.Conv2d(2, 2, 2, stride=2, bias=False)
        layers = (self.first, self.second, self.third)
        blocks = [SimpleNamespace(resnets=[layer]) for layer in layers]
        self.unet = SimpleNamespace(down_blocks=blocks)

    def classify(self, latents: Tensor) -> Tensor:
        first = self.first(latents)
        second = self.second(first)
        maps = (first, second, self.third(second))
        return torch.stack([one.mean(dim=(1, 2, 3)) for one in maps]).sum(dim=0)[:, None]


def test_grad_cam_weighs_the_deepest_maps_that_show_a_place() -> None:
    """Of 8 x 8 and not of 4 x 4, each map by its mean gradient."""
    joint = Pooled()
    model: Any = SimpleNamespace(
        codec=SimpleNamespace(encode=lambda images: images),
        joint=joint,
        multi_label=True,
        device=torch.device("cpu"),
    )
    images = draw(2, 1, 8, 8) * 4 - 2
    maps = grad_cam(model, images, torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        second = joint.second(joint.first(images))  # (2, 2, 8, 8)
        # Directly, and through the third convolution, which has a quarter of the positions.
        slope = 1 / (2 * 64) + joint.third.weight.sum(dim=(0, 2, 3)) / 4 / (2 * 16)
        expected = (second * slope[:, None, None]).sum(dim=1)
    torch.testing.assert_close(maps, expected.relu(), rtol=1e-4, atol=1e-6)
    assert not images.requires_grad and not maps.requires_grad
    assert (maps == 0).any() and (maps > 0).any()


def seen(mask: Tensor) -> Any:
    """Probability: the share of the mask's pixels that are white."""
    return lambda images: (images[:, 0] * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))


def test_curves_of_the_best_and_the_worst_map() -> None:
    """A quarter of the pixels counts: gone at once, or last."""
    images, black = torch.ones(1, 1, 8, 8), torch.zeros(1, 8, 8)
    mask = torch.zeros(1, 8, 8)
    mask[0, :4, :4] = 1.0
    best = deletion_curve(images, black, mask, seen(mask), steps=4)
    assert best.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]
    worst = deletion_curve(images, black, -mask, seen(mask), steps=4)
    assert worst.tolist() == [[1.0, 1.0, 1.0, 1.0, 0.0]]
    assert area(best).tolist() == pytest.approx([0.125])
    assert area(worst).tolist() == pytest.approx([0.875])
    inserted = insertion_curve(images, black, mask, seen(mask), steps=4)
    assert inserted.tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0]]
    assert area(inserted).tolist() == pytest.approx([0.875])


@given(st.integers(0, 50))
def test_agreement_is_spearmans_with_ties(seed: int) -> None:
    first = (draw(2, 4, 5, seed=seed) * 4).round()
    second = draw(2, 4, 5, seed=seed + 1) + 0.2 * first
    slow = [
        spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)
    ]
    assert rank_agreement(first, second).tolist() == pytest.approx(slow, nan_ok=True)
    assert rank_agreement(first, -2 * first).tolist() == pytest.approx([-1.0, -1.0])
    assert rank_agreement(first * 0, second).isnan().all()
