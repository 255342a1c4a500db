"""The effect of a scanner mark on the classifier: pasted on images, and removed from them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.data import marks
from mediffusion_core.evaluation.localisation import squared_change
from mediffusion_core.settings import MarkKind

LogOdds = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [0, 1] to the log odds of each class, (B, classes)."""


@dataclass(frozen=True)
class Effects:
    """Effects of one kind of mark on n images, in log odds of each class."""

    found: Tensor
    """Which images have the mark, (n,)."""
    pasted: Tensor
    """Rise where the mark is pasted, (n, classes); nan for images that have it."""
    removed: Tensor
    """Fall where the mark is removed, (n, classes); nan for images without it."""


def mark_effects(images: Tensor, kind: MarkKind, log_odds: LogOdds, given: Tensor) -> Effects:
    """Pastes a mark on the images without it, and removes it from those that have it.

    Args:
        images: (n, C, H, W) in [0, 1].
        kind: The mark.
        log_odds: The classifier.
        given: Log odds of the images as they are, (n, classes).
    """
    found = marks.present(images, kind)
    pasted, removed = torch.full_like(given, torch.nan), torch.full_like(given, torch.nan)
    if not bool(found.all()):
        pasted[~found] = log_odds(marks.pasted(images[~found], kind)) - given[~found]
    if bool(found.any()):
        removed[found] = given[found] - log_odds(marks.removed(images[found], kind))
    return Effects(found, pasted, removed)


def concentration(sources: Tensor, changed: Tensor, kind: MarkKind) -> Tensor:
    """Share of a change's energy at the place of a mark, divided by the share of the pixels, (n,).

    1 is a change without a preferred place; nan where nothing changed.

    Args:
        sources: (n, C, H, W).
        changed: Their counterfactuals, (n, C, H, W).
        kind: The mark.
    """
    energy = squared_change(sources, changed)
    place = torch.from_numpy(marks.region(kind, sources.shape[-1]))
    share = energy[:, place].sum(dim=1) / energy.sum(dim=(1, 2))
    return share / place.float().mean()
