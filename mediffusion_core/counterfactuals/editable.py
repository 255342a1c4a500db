"""Where an image may change: pixels of the image, and cells of its latent."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class EditableRegion:
    """The pixels that a counterfactual may change; all others stay those of the image."""

    sources: Tensor
    """The images, (n, C, H, W)."""
    pixels: Tensor
    """Which pixels may change, booleans (n, 1, H, W)."""

    def compose(self, changed: Tensor, rows: Tensor) -> Tensor:
        """Changed images (b, C, H, W) inside the region, the sources at positions (b,) outside."""
        return torch.where(self.pixels[rows], changed, self.sources[rows])

    def cells(self, height: int, width: int) -> Tensor:
        """The cells of a latent that the region touches, (n, 1, h, w) in {0, 1}."""
        return F.adaptive_max_pool2d(self.pixels.float(), (height, width))
