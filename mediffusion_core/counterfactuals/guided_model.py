"""The joint UNet with all that guidance has to know of how it was trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.diffusion.process import noise_from
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import Prediction


@dataclass(frozen=True)
class GuidedModel:
    """Denoiser and head, their noise process, and the noise that the head has seen."""

    network: JointUNet
    """In evaluation mode."""
    alphas_cumprod: Tensor
    """ᾱ (T,)."""
    prediction: Prediction
    """What the network predicts."""
    head_until: int
    """The noisiest timestep on which the head was trained; 0 if on no noise."""
    temperature: float = 1.0
    """What its logits are divided by: with which its confidence in clean images is right."""

    def asked(self, timesteps: Sequence[int]) -> list[int]:
        """The timesteps at which the head is asked: those that it was trained on.

        One that was trained on no noise is asked at all of them.

        Raises:
            UserError: if it was trained on noise, but not on as much as the least of them.
        """
        if not self.head_until:
            return list(timesteps)
        known = [t for t in timesteps if t <= self.head_until]
        if not known:
            raise UserError(
                f"the classifier was trained on noise up to t = {self.head_until}, and the last "
                f"step starts at {min(timesteps)}: take more steps"
            )
        return known

    def noise_pred(self, latents: Tensor, timestep: int) -> Tensor:
        """ε̂ (B, c, h, w) of z_t (B, c, h, w)."""
        output = self.network.denoise(latents, _each(latents, timestep))
        return noise_from(output, latents, self.alphas_cumprod[timestep], self.prediction)

    def classify(self, latents: Tensor, timestep: int) -> Tensor:
        """Calibrated logits (B, C) of z_t (B, c, h, w)."""
        return self.classify_uncalibrated(latents, timestep) / self.temperature

    def noise_pred_and_logits(self, latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """ε̂ and calibrated logits from one pass through the encoder."""
        output, logits = self.network(latents, _each(latents, timestep))
        alpha_bar = self.alphas_cumprod[timestep]
        return noise_from(output, latents, alpha_bar, self.prediction), logits / self.temperature

    def classify_uncalibrated(self, latents: Tensor, timestep: int) -> Tensor:
        """Logits (B, C) of z_t (B, c, h, w) as the head gives them."""
        return self.network.classify(latents, _each(latents, timestep))


def _each(latents: Tensor, timestep: int) -> Tensor:
    """The same timestep for every latent, (B,)."""
    return torch.full((len(latents),), timestep, device=latents.device)
