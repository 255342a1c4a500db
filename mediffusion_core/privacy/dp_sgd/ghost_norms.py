"""Norms of convolutions' per-sample gradients without the gradients, where maps are small.

A sample's weight gradient is Σ_t b_t a_tᵀ, of patches a_t and back-propagated b_t at T positions,
so that

    ‖Σ_t b_t a_tᵀ‖² = Σ_{t,s} (b_t · b_s) (a_t · a_s)

which takes T² (P + O) operations and no memory of the gradient's size, for T P O of the gradient
itself (ghost clipping of convolutions, arXiv 2205.10683, section 3). At the coarse levels of a
UNet, which hold most weights, T is 4 to 64.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def register() -> None:
    """Lets Opacus' ghost clipping take its norms from here.

    Raises:
        ImportError: if Opacus is not installed.
    """
    from opacus.grad_sample import register_norm_sampler

    register_norm_sampler(nn.Conv2d)(convolution_norms)


def convolution_norms(
    layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Norms (n,) of each sample's gradient of weight and bias, where these are trained.

    Args:
        layer: The convolution.
        activations: What went in, one tensor (n, I, H, W).
        backprops: The loss's gradient at what came out, (n, O, h, w).
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
"""Numbers whose squares are summed in single precision, with an error of some 1e-6."""


def lengths(samples: Tensor) -> Tensor:
    """Norms (n,) of samples (n, …), in double precision over blocks of single precision.

    In single precision the sum over some millions of squares is too small by a thousandth, and so
    would be the norm by which a gradient is clipped; all of it in double takes twenty times longer.
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
