"""The joint UNet: one set of weights that denoises latents and classifies them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from mediffusion_core.models.head import ClassifierHead
from mediffusion_core.settings import HeadSettings, UNetSettings


def build_unet(settings: UNetSettings, latent_shape: tuple[int, int, int]) -> UNet2DModel:
    """Builds an untrained denoiser for latents of the given (channels, height, width)."""
    channels, side, _ = latent_shape
    down = tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in settings.attention)
    up = tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(settings.attention))
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=settings.layers_per_block,
        block_out_channels=settings.channels,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=settings.attention_head_width,
        norm_num_groups=settings.norm_groups,
    )


def map_widths(settings: UNetSettings) -> list[int]:
    """Channels of every map of the encoder and of the middle one, in order."""
    widths = [settings.channels[0]]
    last = len(settings.channels) - 1
    for level, width in enumerate(settings.channels):
        widths += [width] * (settings.layers_per_block + (level < last))
    return [*widths, settings.channels[-1]]


def pooled_width(settings: UNetSettings) -> int:
    """Width of the pooled features: every encoder map and the middle one, concatenated.

    With the reference's widths 256, 512, 1024 and two residual blocks a level this is 5632.
    """
    return sum(map_widths(settings))


def head_widths(unet: UNetSettings, head: HeadSettings, latent_channels: int) -> list[int]:
    """Channels of the head's inputs: of the latent if it takes statistics, else of each map."""
    return [latent_channels] if head.latent_statistics else map_widths(unet)


DECODER_HALF = ("up_blocks", "conv_norm_out", "conv_out")
"""Parts of a denoiser without which a latent is classified."""


def encoder_half(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a denoiser that the classifier needs."""
    return {n: value for n, value in unet.items() if n.partition(".")[0] not in DECODER_HALF}


EVERY, NONE = slice(None), slice(0)
"""Rows of a batch."""


class Encoded(NamedTuple):
    """Latents, and what the encoder half of the joint UNet computes from them."""

    latents: Tensor
    """(B, c, h, w)."""
    embedding: Tensor
    """Of the timesteps, (B, E)."""
    maps: Sequence[Tensor]
    """Of every resolution, the middle one last, (B, C_i, h_i, w_i)."""


class JointUNet(nn.Module):
    """Denoiser and classifier in one module with a single `forward`.

    Per-sample gradient hooks work on `forward` alone, so both outputs come from it. The caller
    names the rows for each output; the others are not computed.
    """

    def __init__(
        self,
        unet_settings: UNetSettings,
        head_settings: HeadSettings,
        latent_shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        """Takes the widths, the latents' (channels, height, width) and the number of classes."""
        super().__init__()
        self.unet = build_unet(unet_settings, latent_shape)
        widths = head_widths(unet_settings, head_settings, latent_shape[0])
        self.head = ClassifierHead(widths, num_classes, head_settings)

    @classmethod
    def of(cls, unet: UNet2DModel, head: ClassifierHead) -> Self:
        """Joins an existing denoiser and an existing classifier."""
        joint = cls.__new__(cls)
        nn.Module.__init__(joint)
        joint.unet, joint.head = unet, head
        return joint

    def forward(
        self, latents: Tensor, timesteps: Tensor, denoise: slice = EVERY, classify: slice = EVERY
    ) -> tuple[Tensor | None, Tensor | None]:
        """The denoiser's output for the latents, and their logits.

        Args:
            latents: Noised latents (B, c, h, w).
            timesteps: (B,) integers; 0 is the first noise level, taken as clean.
            denoise: Rows for the decoder half. A row without it costs about 40 % as much.
            classify: Rows for the head.

        Returns:
            The denoiser's output (rows, c, h, w) and the logits (rows, num_classes); None for one
            without rows.
        """
        if self.head.reads_latents and not range(len(latents))[denoise]:
            encoded = Encoded(latents, latents.new_empty(0), ())  # statistics need no maps
        else:
            encoded = self.encode(latents, timesteps)
        return self.outputs(encoded, denoise, classify)

    def encode(self, latents: Tensor, timesteps: Tensor) -> Encoded:
        """The maps of the encoder half, from which both outputs come; arguments as `forward`."""
        embedding = self.unet.time_embedding(self.unet.time_proj(timesteps).to(latents.dtype))
        hidden = self.unet.conv_in(latents)  # (B, C0, h, w)
        maps: tuple[Tensor, ...] = (hidden,)
        for block in self.unet.down_blocks:
            hidden, block_maps = block(hidden, embedding)
            maps += block_maps
        hidden = self.unet.mid_block(hidden, embedding)  # (B, CL, h / 2^L, w / 2^L)
        return Encoded(latents, embedding, (*maps, hidden))

    def pooled(self, encoded: Encoded, rows: slice = EVERY) -> Tensor:
        """The pooled maps as the classifier takes them, (rows, `pooled_width`)."""
        pooled: Tensor = self.head.get_submodule("pooling")([one[rows] for one in encoded.maps])
        return pooled

    def outputs(
        self, encoded: Encoded, denoise: slice = EVERY, classify: slice = EVERY
    ) -> tuple[Tensor | None, Tensor | None]:
        """The outputs for encoded latents; arguments and results as `forward`."""
        noise_pred = logits = None
        rows = range(len(encoded.latents))
        if rows[classify]:
            logits = self.head(
                encoded.latents[classify]
                if self.head.reads_latents
                else [one[classify] for one in encoded.maps]
            )
        if rows[denoise]:
            maps = [one[denoise] for one in encoded.maps]
            noise_pred = self._decode(maps, encoded.embedding[denoise])
        return noise_pred, logits

    def _decode(self, maps: Sequence[Tensor], embedding: Tensor) -> Tensor:
        *maps, hidden = maps
        for block in self.unet.up_blocks:
            taken = len(block.resnets)
            skips, maps = maps[-taken:], maps[:-taken]
            hidden = block(hidden, skips, embedding)
        hidden = self.unet.conv_act(self.unet.conv_norm_out(hidden))
        noise_pred: Tensor = self.unet.conv_out(hidden)  # (B, c, h, w)
        return noise_pred

    def denoise(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """The denoiser's output alone, (B, c, h, w): ε̂, v̂ or ẑ_0."""
        noise_pred: Tensor | None
        noise_pred, _ = self(latents, timesteps, classify=NONE)
        assert noise_pred is not None
        return noise_pred

    def classify(self, latents: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """The logits alone, (B, num_classes), from the encoder half; at t = 0 by default."""
        if timesteps is None:
            timesteps = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        logits: Tensor | None
        _, logits = self(latents, timesteps, denoise=NONE)
        assert logits is not None
        return logits
