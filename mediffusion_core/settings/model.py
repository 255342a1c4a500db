"""The networks that are trained, and the noise process."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Positive, StrictModel

PASSAGE = 4
"""Channels by which one number passes an autoencoder with `linear_start`."""


class AutoencoderSettings(StrictModel):
    """Widths of diffusers' `AutoencoderKL`; each width after the first halves the resolution.

    Before the first convolution, patches of `patch_size` pixels a side become channels; `attention`
    says whether the middle blocks attend, `linear_start` whether the first weights are those of a
    cosine transform (`model.linear_start`).
    """

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    layers_per_block: Count = 2
    latent_channels: Count = 4
    norm_groups: Count = 32
    patch_size: Count = 1
    attention: bool = True
    linear_start: bool = False

    @model_validator(mode="after")
    def _numbers_can_pass(self) -> Self:
        if not self.linear_start:
            return self
        if len(self.channels) > 1:
            raise ValueError(
                "model.autoencoder.linear_start needs a network of one level; "
                "patch_size can take the place of others"
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
    """Widths of diffusers' `UNet2DModel`, one level each; attention where `attention` says so."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    attention: tuple[bool, ...]
    layers_per_block: Count = 2
    attention_head_width: Count = 32
    norm_groups: Count = 32

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
    """The classifier on the pooled maps of the UNet's encoder, and on `moments` of the latent."""

    pooling: Literal["mean", "attention"] = "mean"
    moments: bool = False
    hidden: Count = 1024
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3


class ModelSettings(StrictModel):
    """The two networks that are trained: autoencoder, and joint UNet with its head."""

    name: str
    autoencoder: AutoencoderSettings
    unet: UNetSettings
    head: HeadSettings = HeadSettings()

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
    """The noise process: β rises from start to end, linear in its square root.

    `prediction` is what the network learns to predict, by diffusers' name. From the velocity the
    clean latent follows without a division by √ᾱ_t, so a briefly trained network already gets large
    shapes right.
    """

    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "prediction": {"velocity": "v_prediction"}
    }

    timesteps: Annotated[int, Field(ge=2)] = 1000
    beta_start: Positive = 0.0015
    beta_end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.0195
    prediction: Prediction = "v_prediction"

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"diffusion.beta_start {self.beta_start} is larger than "
                f"diffusion.beta_end {self.beta_end}"
            )
        return self
