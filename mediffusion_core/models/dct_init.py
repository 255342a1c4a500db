"""Initial weights with which an autoencoder is a cosine transform of patches.

From random weights diffusers' network spends most of a short training on learning what a cosine
transform of 2x2 pixels does: its last normalisation subtracts the image's mean and divides by its
deviation, and the network has to restore each pixel's level. With these weights the whole network
is that transform at first, and the latents are its coarsest coefficients. Residual branches start
at zero (as in arXiv 1901.09321). A number x passes a group normalisation and SiLU in four channels:
x, -x, and constants K and -K, which keep the group's mean at 0 and its deviation near K / √2 for
any x. Afterwards SiLU(a) - SiLU(-a) = a restores x.
"""

import math

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from mediffusion_core.settings import PASSAGE

CONSTANT = 8.0
"""K. The numbers are at most about 1, so that a group's deviation varies by about 1 %."""
DETAIL = 4.0
"""Factor of all coefficients but a patch's mean. In natural images they are smaller by about that
factor, and coefficients of equal size learn equally fast."""
LOG_VARIANCE = -8.0
"""Initial log variance of the posterior: little noise beside coefficients of size 1."""


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
    """Writes numbers (s,) = matrix · input to the first s passages; other channels stay random."""
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
