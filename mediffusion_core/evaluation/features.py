"""Feature extractors for FID and KID."""

from pathlib import Path
from typing import Protocol

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from mediffusion_core.common.errors import UserError
from mediffusion_core.models.public_encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    efficientnet_lite,
)

EXTRACTORS = ("efficientnet-lite0", "inception")

_BATCH_SIZE = 64
_LAST_SPATIAL_BLOCK, _SPATIAL_CHANNELS = 10, 20


class FeatureExtractor(Protocol):
    """Maps images to features."""

    name: str
    dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """Features of each image.

        Args:
            images: (B, C, H, W) in [0, 1], C 1 (grey, repeated) or 3.

        Returns:
            (B, dim) float32 on the CPU.

        Raises:
            ValueError: another shape, or integer images.
        """


class _EfficientNetLite0:
    name = "efficientnet-lite0"
    dim = 1280

    def __init__(self, model: EfficientNet, resolution: int, device: torch.device | str) -> None:
        # Its depthwise convolutions are up to twice as fast on a CPU in this memory format.
        self._model = model.to(device, memory_format=torch.channels_last).eval()
        self._resolution = resolution
        self._device = device
        self._mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        features = [
            self._features(self._prepare(batch)).cpu()
            for batch in torch.split(_checked(images), _BATCH_SIZE)
        ]
        return torch.cat([torch.empty(0, self.dim), *features])

    def _features(self, batch: Tensor) -> Tensor:
        """The last maps, averaged over the image, (B, 1280)."""
        pooled: Tensor = self._model.extract_features(batch).mean(dim=(2, 3))
        return pooled

    def _prepare(self, batch: Tensor) -> Tensor:
        batch = nn.functional.interpolate(
            _rgb(batch.to(self._device)),
            size=(self._resolution, self._resolution),
            mode="bilinear",
            antialias=True,
        )  # (B, 3, R, R)
        normalised = (batch - self._mean) / self._std
        return normalised.contiguous(memory_format=torch.channels_last)


class _SpatialEfficientNetLite0(_EfficientNetLite0):
    name = "efficientnet-lite0, spatial"

    def _features(self, batch: Tensor) -> Tensor:
        """The first 20 channels of the last maps at a sixteenth of the size, (B, 20 · 8 · 8)."""
        maps = self._model._swish(self._model._bn0(self._model._conv_stem(batch)))
        for block in self._model._blocks[: _LAST_SPATIAL_BLOCK + 1]:
            maps = block(maps)
        first: Tensor = maps[:, :_SPATIAL_CHANNELS]  # (B, 20, 8, 8)
        return first.flatten(1)


class _Inception:
    name = "inception"
    dim = 2048

    def __init__(self, model: nn.Module, device: torch.device | str) -> None:
        self._model = model.to(device).eval()
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        features = [
            self._model(_bytes(_rgb(batch.to(self._device))))[0].cpu()
            for batch in torch.split(_checked(images), _BATCH_SIZE)
        ]
        return torch.cat([torch.empty(0, self.dim), *features])


def efficientnet_lite0(
    resolution: int = 128, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """EfficientNet-Lite0 with ImageNet weights from an installed package: nothing is downloaded.

    Features are the last convolution's 1280 maps, averaged over the image. Distances between them
    are not comparable with published FID figures, which use Inception.

    Args:
        resolution: pixels a side the images are resized to, bilinear with antialiasing.
        device: where the network runs.
    """
    return _EfficientNetLite0(efficientnet_lite(0, resolution), resolution, device)


def spatial_efficientnet_lite0(device: torch.device | str = "cpu") -> FeatureExtractor:
    """Features that keep positions, for sFID (arXiv 2103.03841).

    The paper takes channels of an earlier layer of Inception, about as many values as the pooled
    features have. These are the first 20 channels of EfficientNet-Lite0's last 8 x 8 maps, at 128
    px: 1280 values, as many as pooled. Not comparable with published figures.

    Args:
        device: where the network runs.
    """
    return _SpatialEfficientNetLite0(efficientnet_lite(0, 128), 128, device)


def inception(weights: Path | None = None, device: torch.device | str = "cpu") -> FeatureExtractor:
    """InceptionV3 as torch-fidelity ports it from TensorFlow: the network of published FID figures.

    Features are the 2048 values of the last pooling. Images are rounded to bytes; the network
    resizes them.

    Args:
        weights: file of the ported weights; torch-fidelity downloads them if None.
        device: where the network runs.

    Raises:
        UserError: torch-fidelity or torchvision is missing or does not fit PyTorch, the weights
            file is missing or is not a state dict, or the download failed.
    """
    if weights is not None:
        _check_weights(weights)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        # A torchvision that was built for another PyTorch raises RuntimeError.
        raise UserError(
            f"extractor inception: torch-fidelity cannot be imported ({error}); run `pip install "
            "torch-fidelity torchvision` to match PyTorch, or use efficientnet-lite0"
        ) from error
    try:
        with torch.random.fork_rng(devices=[]):
            model = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], None if weights is None else str(weights)
            )
    except OSError as error:
        raise UserError(
            f"extractor inception: weights could not be downloaded ({error}); "
            "give the path of a local copy"
        ) from error
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"extractor inception: {weights or 'the download'} does not hold torch-fidelity's "
            "InceptionV3 weights"
        ) from error
    return _Inception(model, device)


def build_extractor(
    name: str, weights: Path | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """The feature extractor of that name.

    Args:
        name: one of `EXTRACTORS`.
        weights: file of the weights, for inception only.
        device: where the network runs.

    Raises:
        UserError: the name is unknown, weights are given for an extractor that has its own, or
            as `inception`.
    """
    if name == "inception":
        return inception(weights, device)
    if name != "efficientnet-lite0":
        raise UserError(f"unknown feature extractor {name!r}; allowed: {', '.join(EXTRACTORS)}")
    if weights is not None:
        raise UserError(f"extractor {name} brings its own weights, got {weights}; give none")
    return efficientnet_lite0(device=device)


def _check_weights(weights: Path) -> None:
    if not weights.is_file():
        raise UserError(f"extractor inception: weights file {weights} does not exist")
    # torch-fidelity unpickles without restriction; a file that passes this check runs no code.
    try:
        torch.load(weights, map_location="meta", weights_only=True)
    except Exception as error:
        raise UserError(
            f"extractor inception: {weights} is not a file of plain PyTorch weights"
        ) from error


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise ValueError(
            "images must be floats of shape (B, 1 or 3, H, W), "
            f"got {images.dtype} of {tuple(images.shape)}"
        )
    return images.detach()


def _rgb(images: Tensor) -> Tensor:
    return images.float().expand(-1, 3, -1, -1)


def _bytes(images: Tensor) -> Tensor:
    return (images * 255.0).round().clamp(0, 255).to(torch.uint8)
