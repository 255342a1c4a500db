"""Whether the change of an image lies within the mask of the finding.

Images are (B, C, H, W) and masks booleans (B, H, W). Where a mask is empty, the figure is nan.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 2
"""Pixels by which a mask is widened, since imaging and decoding blur edges."""


def squared_change(first: Tensor, second: Tensor) -> Tensor:
    """Energy of the change, Σ (x - y)² over channels, (B, H, W)."""
    return (first - second).square().sum(dim=1)


def dilated(masks: Tensor, pixels: int) -> Tensor:
    """Masks (B, H, W) widened by some pixels in all eight directions."""
    window = 2 * pixels + 1
    widened = F.max_pool2d(masks[:, None].float(), window, stride=1, padding=pixels)
    return widened[:, 0] > 0


def energy_inside(energy: Tensor, masks: Tensor, margin: int = MARGIN) -> Tensor:
    """Share of the change's energy within the widened mask, (B,); nan where nothing changed.

    The energy-based pointing game (arXiv 1910.01279) with a mask instead of a box.
    """
    within = (energy * dilated(masks, margin)).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))
    return _where_masked(within, masks)


def overlap(energy: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the mask and the equally many pixels that changed most, (B,)."""
    flat, energies = masks.flatten(1), energy.flatten(1)
    size = flat.sum(dim=1, keepdim=True)
    rank = energies.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    most = rank < size
    union = (most | flat).sum(dim=1)
    return _where_masked((most & flat).sum(dim=1) / union, masks)


def pointing_game(energy: Tensor, masks: Tensor, margin: int = MARGIN) -> Tensor:
    """1 where the pixel that changed most lies in the widened mask, else 0, (B,).

    arXiv 1608.00507, which takes a margin of 15 pixels on larger images.
    """
    most = energy.flatten(1).argmax(dim=1, keepdim=True)
    hit = dilated(masks, margin).flatten(1).gather(1, most).squeeze(1)
    return _where_masked(hit.to(energy.dtype), masks)


def change_per_pixel(first: Tensor, second: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean |x - y| per pixel inside and outside the mask, both (B,).

    The check of arXiv 2411.09434, which takes boxes of lesions.
    """
    change = (first - second).abs().mean(dim=1)  # (B, H, W)
    inside = (change * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2))
    outside = (change * ~masks).sum(dim=(1, 2)) / (~masks).sum(dim=(1, 2))
    return _where_masked(inside, masks), _where_masked(outside, masks)


def _where_masked(values: Tensor, masks: Tensor) -> Tensor:
    return torch.where(masks.flatten(1).any(dim=1), values, torch.nan)
