"""The joint UNet with all that guidance has to know of how it was trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.diffusion.noise_process import noise_from
from mediffusion_core.model import JointUNet
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
    """The noisiest timestep on which the head was trained."""
    temperature: float = 1.0
    """What its logits are divided by, so that a confidence means what it says."""

    def asked(self, timesteps: Sequence[int]) -> list[int]:
        """The timesteps at which the head is asked: those that it was trained on, else all."""
        return [t for t in timesteps if t <= self.head_until] or list(timesteps)

    def noise_pred(self, latents: Tensor, timestep: int) -> Tensor:
        """ε̂ (B, c, h, w) of z_t (B, c, h, w)."""
        output = self.network.denoise(latents, self.at(latents, timestep))
        return noise_from(output, latents, self.alphas_cumprod[timestep], self.prediction)

    def classify(self, latents: Tensor, timestep: int) -> Tensor:
        """Calibrated logits (B, C) of z_t (B, c, h, w)."""
        return self.network.classify(latents, self.at(latents, timestep)) / self.temperature

    def noise_pred_and_logits(self, latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """ε̂ and calibrated logits from one pass through the encoder."""
        output, logits = self.network(latents, self.at(latents, timestep))
        alpha_bar = self.alphas_cumprod[timestep]
        return noise_from(output, latents, alpha_bar, self.prediction), logits / self.temperature

    @staticmethod
    def at(latents: Tensor, timestep: int) -> Tensor:
        """One timestep for every latent, (B,)."""
        return torch.full((len(latents),), timestep, device=latents.device)
