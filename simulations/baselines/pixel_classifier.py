"""A ResNet-18 for small images, with the interface that the evaluator expects of a classifier."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from mediffusion_core.common.device import autocast
from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.classify import symmetries
from mediffusion_core.models import class_probabilities
from simulations.baselines.settings import Norm

BATCH_PIXELS = 256 * 32 * 32
"""Pixels of the images that are classified at once."""
WIDTHS = (64, 128, 256, 512)
GROUPS = 32
"""Groups of channels in group normalisation, as in arXiv 1803.08494."""


def build_resnet(
    channels: int,
    num_classes: int,
    stem_stride: int,
    norm: Norm = "batch",
    widths: tuple[int, ...] = WIDTHS,
) -> nn.Module:
    """A ResNet-18 (arXiv 1512.03385) with a 3×3 stem and without the pooling after it.

    A stem stride of 1 gives the stem of section 4.2, for images of 32 pixels.

    Args:
        channels: Channels of the images.
        num_classes: Number of logits.
        stem_stride: Stride of the first convolution.
        norm: Normalisation by batch or by groups of channels.
        widths: Channels of the four stages.

    Raises:
        UserError: if MONAI is not installed.
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
        _use_group_norm(network)
    # Twice as fast on a CPU. The types of PyTorch lack this argument.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def require_monai() -> None:
    """Checks that MONAI is installed, without importing it.

    Raises:
        UserError: if MONAI is not installed.
    """
    if find_spec("monai") is None:
        raise UserError("a ResNet-18 needs MONAI: pip install 'fed-mediffusion[studies]'")


def _use_group_norm(module: nn.Module) -> None:
    """Replaces batch normalisation everywhere; MONAI's own option replaces it in the stem alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
        else:
            _use_group_norm(child)


def normalised(images: Tensor) -> Tensor:
    """Images (B, C, H, W) scaled from [0, 1] to [-1, 1], channels last in memory."""
    return (images * 2 - 1).contiguous(memory_format=torch.channels_last)


@dataclass
class PixelClassifier:
    """A trained network as a `Classifier` of the evaluator; its "latents" are the images."""

    network: nn.Module
    multi_label: bool
    orientation_free: bool
    """Averages over the eight orientations of an image, as the joint network does."""
    precision: str
    temperature: float = 1.0

    def encode(self, images: Tensor) -> Tensor:
        """The images (N, C, H, W), unchanged."""
        return images

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        self.network.eval()
        parts = []
        for part in images.split(max(1, BATCH_PIXELS // (images.shape[2] * images.shape[3]))):
            views = symmetries(part) if self.orientation_free else [part]
            with autocast(self.precision, part.device):
                logits = [self.network(normalised(view)).float() for view in views]
            parts.append(torch.stack(logits).mean(dim=0))
        return torch.cat(parts)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (N, classes)."""
        return class_probabilities(logits / self.temperature, self.multi_label)
