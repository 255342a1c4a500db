"""EfficientNet-Lite with ImageNet weights, fine-tuned on the originals at its own resolution."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.data.store.prepared import Store
from mediffusion_core.models.public_encoders import IMAGENET_MEAN, IMAGENET_STD, efficientnet_lite
from mediffusion_core.training.public_features import rows_there


class FineTuned(nn.Module):
    """EfficientNet-Lite1 with a new last layer.

    Its batch normalisation keeps the statistics of ImageNet: those of a site's few images differ
    from site to site, and their average fits none (arXiv 1910.00189).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, num_classes: int) -> None:
        """Takes the side of the images in pixels, and draws the last layer.

        Raises:
            UserError: if the package of the weights is not installed.
        """
        super().__init__()
        self.network = efficientnet_lite(1, image_size)
        self.network._fc = nn.Linear(self.network._fc.in_features, num_classes)
        # Its depthwise convolutions are up to twice as fast on a CPU in this memory format.
        self.network.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1], C 1 (grey, repeated) or 3, to logits (B, classes)."""
        images = ((images.expand(-1, 3, -1, -1) + 1) / 2 - self.mean) / self.std
        logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits

    def train(self, mode: bool = True) -> "FineTuned":
        """Switches dropout; batch normalisation stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


@dataclass(frozen=True)
class OriginalPixels:
    """The images of a store, at another side in pixels."""

    store: Store
    """Of the images at that side."""
    row_there: NDArray[np.int64]
    """Row in it of each image of the first store, (N,)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, C)."""
        return (len(self.row_there), *self.store.images.shape[1:])

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Images (B, S, S, C) at the given rows (B,) of the first store."""
        return self.store.images[self.row_there[rows]]


def at_image_size(dataset: FederatedDataset, side: int) -> FederatedDataset:
    """The same partition of the same images, read from the originals at another side in pixels.

    Raises:
        UserError: if images cannot be read at that side.
    """
    assert dataset.at_size is not None
    store = dataset.at_size(side, None)
    rows = rows_there(dataset.store, np.arange(len(dataset.store.images)), store)
    return replace(dataset, pixels=OriginalPixels(store, rows))
