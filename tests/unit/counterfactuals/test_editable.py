"""Where an image may change, in its pixels and in its latent."""

import torch
from helpers.gaussian import PROCESS, GaussianData
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.counterfactuals.compose import counterfactual_latents
from mediffusion_core.counterfactuals.editable import EditableRegion
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.inversion import change_mask
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.settings import CounterfactualSettings

MODEL = GuidedModel(GaussianData(0.0, 1.0), PROCESS, 999, 1.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_cell_is_editable_if_the_region_touches_it() -> None:
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    pixels[0, 0, 3, 4] = True  # the last row of the first cells, the first column of the second
    region = EditableRegion(torch.zeros(2, 1, 8, 8), pixels)
    assert region.cells(2, 2).tolist() == [[[[0, 1], [0, 0]]], [[[0, 0], [0, 0]]]]
    assert region.cells(3, 3)[0, 0].nonzero().tolist() == [[1, 1]]


def test_only_the_region_takes_the_changed_pixels() -> None:
    sources, changed = draw(3, 2, 4, 4), draw(2, 2, 4, 4, seed=1)
    pixels = draw(3, 1, 4, 4, seed=2) > 0
    made = EditableRegion(sources, pixels).compose(changed, torch.tensor([2, 0]))
    for image, row in enumerate((2, 0)):
        inside = pixels[row].expand(2, 4, 4)
        assert torch.equal(made[image][inside], changed[image][inside])
        assert torch.equal(made[image][~inside], sources[row][~inside])


def test_the_largest_saliency_is_that_of_the_editable_cells() -> None:
    saliency = torch.ones(1, 1, 8, 8)
    saliency[..., :4] = 100.0
    editable = torch.ones(1, 1, 8, 8)
    editable[..., :4] = 0
    assert change_mask(saliency, 0.5)[..., 6:].sum() == 0
    within = change_mask(saliency, 0.5, editable)
    assert within[..., :4].sum() == 0 and bool((within[..., 5:] == 1).all())
    assert torch.equal(change_mask(saliency, 0.0, editable), editable)


@given(st.integers(0, 99), st.booleans())
@hypothesis_settings(max_examples=8)
def test_latents_outside_the_cells_stay(seed: int, inversion: bool) -> None:
    latents = draw(3, 2, 8, 8, seed=seed)
    cells = (draw(3, 1, 8, 8, seed=seed + 1) > 0.5).float()
    target = Target(torch.zeros(3, dtype=torch.long), torch.tensor([True, False, True]), True)
    settings = CounterfactualSettings(
        inversion=inversion, num_candidates=2, num_inference_steps=3, strength=0.4
    )

    def made(editable: Tensor | None) -> Tensor:
        return counterfactual_latents(MODEL, latents, target, settings, editable=editable)

    found = made(cells)
    outside = (cells == 0).expand_as(latents)
    assert torch.equal(found[outside], latents[outside])
    assert not torch.equal(found, latents)
    assert torch.equal(made(torch.ones_like(cells)), made(None))
