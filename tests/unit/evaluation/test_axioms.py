"""Composition and reversibility of changes in closed form."""

import pytest
import torch
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.axioms import composition, reversibility


def removed(*present: bool) -> Target:
    return Target(torch.zeros(len(present), dtype=torch.long), torch.tensor(present), True)


def shifted(images: Tensor, target: Target) -> Tensor:
    """Brightens where the finding is to be present and darkens elsewhere, whatever is there."""
    return images + 0.2 * (target.present.float() - 0.5).reshape(-1, 1, 1, 1)


def drawn(images: Tensor, target: Target) -> Tensor:
    """The image that the target alone determines."""
    return torch.ones_like(images) * target.present.float().reshape(-1, 1, 1, 1)


def test_a_shift_is_reversible_and_does_not_compose() -> None:
    sources, original = torch.rand(2, 1, 4, 4), removed(True, False)
    images = shifted(sources, removed(False, True))
    assert composition(shifted, sources, original).tolist() == pytest.approx([0.1, 0.1])
    back = reversibility(shifted, sources, images, original)
    assert back.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_what_keeps_nothing_of_the_image_violates_both() -> None:
    sources, original = torch.full((2, 1, 4, 4), 0.25), removed(True, False)
    images = drawn(sources, removed(False, True))
    assert composition(drawn, sources, original).tolist() == pytest.approx([0.75, 0.25])
    back = reversibility(drawn, sources, images, original)
    assert back.tolist() == pytest.approx([0.75, 0.25])
