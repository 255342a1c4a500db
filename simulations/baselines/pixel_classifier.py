"""A ResNet-18 for small images, and what the judge asks of a classifier."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from mediffusion_core.common.device import autocast
from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.classify import symmetries
from mediffusion_core.models import class_probabilities
from simulations.baselines.settings import Norm

BATCH = 256
WIDTHS = (64, 128, 256, 512)
GROUPS = 32
"""Of group normalisation, as its source has it (arXiv 1803.08494)."""


def build_resnet(
    channels: int,
    num_classes: int,
    stem_stride: int,
    norm: Norm = "batch",
    widths: tuple[int, ...] = WIDTHS,
) -> nn.Module:
    """ResNet-18 (arXiv 1512.03385) with a first convolution of 3 pixels and no pooling after it.

    With a stride of 1 that is the source's stem for images of 32 pixels (its section 4.2).
    `widths` are the channels of its four stages.

    Raises:
        UserError: as `require_monai`.
    """
    require_monai()
    # Imported here: it takes seconds, and only this network needs it.
    from monai.networks.nets.resnet import ResNet

    network: nn.Module = ResNet(
        "basic",
        [2, 2, 2, 2],
        list(widths),
        spatial_dims=2,
        n_input_channels=channels,
        num_classes=num_classes,
        conv1_t_size=3,
        conv1_t_stride=stem_stride,
        no_max_pool=True,
        shortcut_type="B",
        bias_downsample=False,
    )
    if norm == "group":
        _normalise_groups(network)
    return network.to(memory_format=torch.channels_last)  # twice as fast on a CPU


def require_monai() -> None:
    """Checks that MONAI is installed, without importing it.

    Raises:
        UserError: it is not.
    """
    if find_spec("monai") is None:
        raise UserError("a ResNet-18 needs MONAI: pip install 'fed-mediffusion[studies]'")


def _normalise_groups(module: nn.Module) -> None:
    """Puts group normalisation where a batch's was; MONAI's own option reaches the stem alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
        else:
            _normalise_groups(child)


def normalised(images: Tensor) -> Tensor:
    """Images (B, C, H, W) from [0, 1] to [-1, 1], laid out as the network is."""
    return (images * 2 - 1).contiguous(memory_format=torch.channels_last)


@dataclass
class PixelClassifier:
    """A trained network as the judge sees it: its "latents" are the images themselves."""

    network: nn.Module
    multi_label: bool
    orientation_free: bool
    """Average over the eight ways to hold an image, as the joint network does."""
    precision: str
    temperature: float = 1.0

    def encode(self, images: Tensor) -> Tensor:
        """The images (N, C, H, W), as they are."""
        return images

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        self.network.eval()
        parts = []
        for part in images.split(BATCH):
            views = list(symmetries(part)) if self.orientation_free else [part]
            with autocast(self.precision, part.device):
                logits = [self.network(normalised(view)).float() for view in views]
            parts.append(torch.stack(logits).mean(dim=0))
        return torch.cat(parts)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (N, classes)."""
        return class_probabilities(logits / self.temperature, self.multi_label)
