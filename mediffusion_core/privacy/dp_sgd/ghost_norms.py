"""Norms of convolutions' per-sample gradients, without the gradients if feature maps are small.

A sample's weight gradient is Σ_t b_t a_tᵀ over T positions, with patches a_t (P numbers) and output
gradients b_t (O numbers). Its squared norm is

    ‖Σ_t b_t a_tᵀ‖² = Σ_{t,s} (b_t · b_s) (a_t · a_s)

and takes T² (P + O) operations. The gradient itself takes T P O operations and P O numbers of
memory (ghost clipping of convolutions, arXiv 2205.10683, section 3). The coarse levels of a UNet
hold most weights, and T is 4 to 64 there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def register() -> None:
    """Registers these norms with Opacus' ghost clipping.

    Raises:
        ImportError: if Opacus is not installed.
    """
    from opacus.grad_sample import register_norm_sampler

    register_norm_sampler(nn.Conv2d)(convolution_norms)


def convolution_norms(
    layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Norms (n,) of the per-sample gradients of weight and bias, if these are trained.

    Args:
        layer: The convolution.
        activations: Its input, one tensor (n, I, H, W).
        backprops: Gradient of the loss at its output, (n, O, h, w).
    """
    if not _is_small(layer, backprops):
        return _of_gradients(layer, activations, backprops)
    found = {}
    behind = backprops.flatten(2)  # (n, O, T)
    if layer.weight.requires_grad:
        assert not isinstance(layer.padding, str)
        patches = F.unfold(
            activations[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )  # (n, P, T)
        inner = patches.transpose(1, 2) @ patches  # (n, T, T)
        outer = behind.transpose(1, 2) @ behind  # (n, T, T)
        squares = (inner * outer).sum(dim=(1, 2), dtype=torch.float64)
        found[layer.weight] = squares.clamp(min=0).sqrt()
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = lengths(behind.sum(dim=2))
    return found


def _is_small(layer: nn.Conv2d, backprops: Tensor) -> bool:
    positions = backprops[0, 0].numel()
    patch, outputs = layer.weight[0].numel(), layer.out_channels
    plain = layer.groups == 1 and not isinstance(layer.padding, str)
    return (
        plain and layer.padding_mode == "zeros" and positions * (patch + outputs) < patch * outputs
    )


def _of_gradients(
    layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    from opacus.grad_sample.conv import compute_conv_grad_sample

    samples: Any = compute_conv_grad_sample(layer, activations, backprops)
    return {parameter: lengths(one) for parameter, one in samples.items()}


BLOCK = 1024
"""Squares per sum in single precision; the relative error is about 1e-6."""


def lengths(samples: Tensor) -> Tensor:
    """Norms (n,) of samples (n, …): single precision within blocks, double precision over them.

    A sum over millions of squares in single precision is too small by 1e-3, and clipping would use
    a norm that is too small. Double precision throughout takes twenty times as long.
    """
    flat = samples.flatten(1)
    count = flat.shape[1] // BLOCK
    blocks = flat[:, : count * BLOCK].unflatten(1, (count, BLOCK))
    rest = flat[:, count * BLOCK :]
    parts = [
        torch.linalg.vector_norm(blocks, dim=2),
        torch.linalg.vector_norm(rest, dim=1, keepdim=True),
    ]
    norms: Tensor = torch.cat(parts, dim=1).double().norm(dim=1)
    return norms
