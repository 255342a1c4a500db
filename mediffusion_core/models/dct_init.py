"""Weights by which an autoencoder starts as a linear transform of patches, and learns from there.

From random weights diffusers' network spends most of a short training on what a cosine transform of
2x2 pixels gives away: each pixel's own level has to come through its last normalisation, which
subtracts and divides by what the image has on average. So the first weights are chosen such that
the whole network is that transform, of which the latents are the coarsest coefficients. Residual
branches start at zero (as in arXiv 1901.09321); a number x passes a group normalisation and SiLU by
going twice, as x and -x, beside constants K and -K that make the group's mean 0 and its
deviation about K / √2, whatever x is: SiLU(a) - SiLU(-a) = a.
"""

import math

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from mediffusion_core.settings import PASSAGE

CONSTANT = 8.0
"""K, against numbers of about 1 at most: a group's deviation then varies by some 1 %."""
DETAIL = 4.0
"""By how much all coefficients but the brightness of a patch are raised: they are that much smaller
in natural images, and learn as fast only at its size."""
LOG_VARIANCE = -8.0
"""Of the posterior at the start, so that what is drawn of it is seen through its noise."""


@torch.no_grad()
def start_linear(kl: AutoencoderKL, image_channels: int, patch_size: int) -> None:
    """Sets the weights of a network of one level, in place.

    Args:
        kl: Takes and gives patches as channels, (B, C p², h, w) in [-1, 1], as
            `torch.pixel_unshuffle` orders them.
        image_channels: C.
        patch_size: p.
    """
    latents = kl.config["latent_channels"]
    passages = kl.config["block_out_channels"][0] // PASSAGE
    for module in kl.modules():
        if isinstance(module, ResnetBlock2D):
            _zero(module.conv2)
        elif isinstance(module, Attention):
            _zero(module.to_out[0])
    basis = patch_basis(image_channels, patch_size)  # (n, n)
    # The first coefficient is the patch's mean, which is at most 1.
    size = torch.full((len(basis), 1), math.sqrt(len(basis)) / DETAIL)
    size[0] *= DETAIL
    _enter(kl.encoder.conv_in, (basis / size)[:passages])
    _leave(kl.encoder.conv_out, torch.eye(2 * latents, latents))
    kl.encoder.conv_out.bias[latents:] = LOG_VARIANCE
    _pass_on(kl.quant_conv)
    _pass_on(kl.post_quant_conv)
    _enter(kl.decoder.conv_in, torch.eye(latents))
    _leave(kl.decoder.conv_out, (basis * size)[:latents].T)


def patch_basis(image_channels: int, patch_size: int) -> Tensor:
    """The cosine transform of C images' p x p patches, over the channels as well, coarsest first.

    For RGB the transform over the channels is brightness and two opponent colours. The order is
    that of natural images' variances: brightness and colours of the whole patch, then brightness
    within it by rising frequency, then colours within it.

    Returns:
        (C p², C p²) with orthonormal rows, over a patch as `torch.pixel_unshuffle` orders it.
    """
    colours, space = _cosines(image_channels), _cosines(patch_size)
    numbered = []
    for colour in range(image_channels):
        for row in range(patch_size):
            for column in range(patch_size):
                key = (colour > 0 and row + column > 0, row + column, row, colour)
                wave = torch.kron(colours[colour], torch.kron(space[row], space[column]))
                numbered.append((key, wave))
    return torch.stack([wave for _, wave in sorted(numbered, key=lambda pair: pair[0])])


def _cosines(count: int) -> Tensor:
    """The orthonormal DCT-II, (count, count): row k is a cosine of k half periods."""
    position, frequency = torch.arange(count) + 0.5, torch.arange(count).float()
    waves = torch.cos(math.pi / count * torch.outer(frequency, position))
    return torch.nn.functional.normalize(waves, dim=1)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _enter(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Lets numbers (s,) = matrix · input into the first s passages; further channels stay drawn."""
    assert conv.bias is not None
    count = PASSAGE * len(matrix)
    centre = conv.kernel_size[0] // 2
    conv.weight[:count] = 0
    for sign, first in ((1, 0), (-1, 1)):
        conv.weight[first:count:PASSAGE, :, centre, centre] = sign * matrix
        conv.bias[first:count:PASSAGE] = 0
        conv.bias[first + 2 : count : PASSAGE] = sign * CONSTANT


def _leave(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Makes the output matrix · (numbers of the first passages), after the normalisation."""
    _zero(conv)
    count = PASSAGE * matrix.shape[1]
    centre = conv.kernel_size[0] // 2
    for sign, first in ((1, 0), (-1, 1)):
        passed = sign * CONSTANT / math.sqrt(2) * matrix
        conv.weight[:, first:count:PASSAGE, centre, centre] = passed


def _pass_on(conv: nn.Conv2d) -> None:
    _zero(conv)
    conv.weight[:, :, 0, 0] = torch.eye(conv.out_channels)
