"""Axioms of counterfactuals (arXiv 2303.01274, section 4), measured by L1; each 0 if it holds."""

from collections.abc import Callable

from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.similarity import mean_absolute

Change = Callable[[Tensor, Target], Tensor]
"""Images (n, C, H, W) and their targets to counterfactuals (n, C, H, W)."""


def composition(change: Change, sources: Tensor, original: Target) -> Tensor:
    """d(x, f(x, y)), (n,): of images to their counterfactuals for the classification they have.

    Args:
        change: f.
        sources: x, (n, C, H, W).
        original: y, the classification of the sources.
    """
    return mean_absolute(change(sources, original), sources)


def reversibility(change: Change, sources: Tensor, images: Tensor, original: Target) -> Tensor:
    """d(x, f(f(x, y*), y)), (n,): of images to those after a change that was undone.

    Args:
        change: f.
        sources: x, (n, C, H, W).
        images: f(x, y*), the counterfactuals, (n, C, H, W).
        original: y, the classification of the sources.
    """
    return mean_absolute(change(images, original), sources)
