"""The joint UNet with what guidance needs: its noise process and how its head was trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import JointUNet


@dataclass(frozen=True)
class GuidedModel:
    """Denoiser and head, their noise process, and the noise on which the head was trained."""

    network: JointUNet
    """In evaluation mode."""
    process: DiffusionProcess
    """On the network's device."""
    head_until: int
    """The noisiest timestep on which the head was trained; 0 if on clean latents alone."""
    temperature: float = 1.0
    """Divisor of the logits, with which the head is calibrated on clean latents."""

    def guided(self, timesteps: Sequence[int]) -> list[int]:
        """The timesteps at which the head guides: those on which it was trained.

        A head that was trained on clean latents alone guides at all of them.

        Raises:
            UserError: if the head was trained on noise, but at none of the timesteps.
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
        return self.process.noise_pred(output, latents, timestep)

    def noise_pred_and_logits(self, latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """ε̂ (B, c, h, w) and calibrated logits (B, C) from one pass through the encoder."""
        output, logits = self.network(latents, _each(latents, timestep))
        return self.process.noise_pred(output, latents, timestep), logits / self.temperature

    def classify(self, latents: Tensor, timestep: int) -> Tensor:
        """Calibrated logits (B, C) of z_t (B, c, h, w)."""
        return self.classify_uncalibrated(latents, timestep) / self.temperature

    def classify_uncalibrated(self, latents: Tensor, timestep: int) -> Tensor:
        """The head's logits (B, C) of z_t (B, c, h, w)."""
        return self.network.classify(latents, _each(latents, timestep))


def _each(latents: Tensor, timestep: int) -> Tensor:
    """The same timestep for every latent, (B,)."""
    return torch.full((len(latents),), timestep, device=latents.device)
