"""The networks that are trained, and the noise process."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, StrictModel

PASSAGE = 4
"""Channels by which one number passes an autoencoder with `linear_start`."""


class AutoencoderSettings(StrictModel):
    """The autoencoder, diffusers' `AutoencoderKL` (arXiv 2112.10752)."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Channels of each level. Each level after the first halves the resolution."""
    layers_per_block: Count = 2
    """Residual blocks of a level, at least 1."""
    latent_channels: Count = 4
    """Channels of a latent, at least 1."""
    norm_groups: Count = 32
    """Groups of the group normalisation. They must divide every width in `channels`."""
    patch_size: Count = 1
    """Side in pixels of the patches that become channels before the first convolution."""
    attention: bool = True
    """Whether the middle block has attention."""
    linear_start: bool = False
    """Whether the first weights compute a cosine transform of the patches; for one level only."""

    @model_validator(mode="after")
    def _numbers_can_pass(self) -> Self:
        if not self.linear_start:
            return self
        if len(self.channels) > 1:
            raise ValueError(
                "model.autoencoder.linear_start needs one level in model.autoencoder.channels; "
                "a larger model.autoencoder.patch_size replaces further levels"
            )
        if self.channels[0] % (PASSAGE * self.norm_groups):
            raise ValueError(
                f"model.autoencoder.norm_groups {self.norm_groups}: with linear_start "
                f"{self.channels[0]} channels make groups of {PASSAGE} or a multiple of that"
            )
        most = self.channels[0] // PASSAGE
        if self.latent_channels > most:
            raise ValueError(
                f"model.autoencoder.latent_channels {self.latent_channels}: with linear_start "
                f"{self.channels[0]} channels carry {most}"
            )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels of the image per pixel of the latent, along one side."""
        return int(self.patch_size * 2 ** (len(self.channels) - 1))


class UNetSettings(StrictModel):
    """The joint network's UNet, diffusers' `UNet2DModel`. The middle block has attention."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Channels of each level. Each level after the first halves the resolution."""
    attention: tuple[bool, ...]
    """For each level, whether it has attention."""
    layers_per_block: Count = 2
    """Residual blocks of a level, at least 1."""
    attention_head_width: Count = 32
    """Channels of an attention head. They must divide the width of levels with attention."""
    norm_groups: Count = 32
    """Groups of the group normalisation. They must divide every width in `channels`."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        if len(self.attention) != len(self.channels):
            raise ValueError("model.unet.attention needs one entry for each of model.unet.channels")
        # The middle block, as wide as the last level, always attends.
        attending = [w for w, on in zip(self.channels, self.attention, strict=True) if on]
        for width in [*attending, self.channels[-1]]:
            if width % self.attention_head_width:
                raise ValueError(
                    f"model.unet.channels: width {width} is not a multiple of "
                    f"model.unet.attention_head_width {self.attention_head_width}"
                )
        return self


class HeadSettings(StrictModel):
    """The classifier on the pooled maps of the UNet's encoder, or on statistics of the latent."""

    former_names: ClassVar[Mapping[str, str]] = {"moments": "latent_statistics"}

    pooling: Literal["mean", "attention"] = "mean"
    """How a map becomes a vector: by its mean, or by attention (arXiv 1802.04712)."""
    latent_statistics: bool = False
    """Whether means, deviations and gradients of the latent replace the maps."""
    normalised: bool = False
    """Whether the pooled maps of each image are normalised to mean 0 and variance 1."""
    hidden: Annotated[int, Field(ge=0)] = 1024
    """Width of the hidden layer; with 0 one linear layer classifies."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Dropout probability, 0 to below 1."""

    @model_validator(mode="after")
    def _pools_maps(self) -> Self:
        if self.latent_statistics and (self.pooling != "mean" or self.normalised):
            raise ValueError(
                "model.head.latent_statistics=true pools no maps; allowed are "
                "model.head.pooling=mean and model.head.normalised=false"
            )
        return self


class ModelSettings(StrictModel):
    """The networks: the autoencoder, and the joint network of UNet and classifier."""

    name: str
    """Name of the preset, for messages."""
    autoencoder: AutoencoderSettings
    """The autoencoder."""
    unet: UNetSettings
    """The UNet."""
    head: HeadSettings = HeadSettings()
    """The classifier."""

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        for name, part in (("autoencoder", self.autoencoder), ("unet", self.unet)):
            for width in part.channels:
                if width % part.norm_groups:
                    raise ValueError(
                        f"model.{name}.channels: width {width} is not a multiple of "
                        f"model.{name}.norm_groups {part.norm_groups}"
                    )
        return self


Prediction = Literal["epsilon", "v_prediction", "sample"]
"""The noise ε, the velocity v or the clean latent z_0."""


class DiffusionSettings(StrictModel):
    """The noise process (arXiv 2006.11239)."""

    former_fields: ClassVar[Mapping[str, Any]] = {"beta_start": 0.0015, "beta_end": 0.0195}
    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "prediction": {"velocity": "v_prediction"}
    }

    timesteps: Annotated[int, Field(ge=2)] = 1000
    """Number of noise levels T, at least 2."""
    prediction: Prediction = "v_prediction"
    """Target of the network, by diffusers' name. From the velocity the clean latent follows
    without a division by √ᾱ_t, which helps networks that were trained briefly."""
