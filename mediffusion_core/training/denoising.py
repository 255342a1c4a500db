"""One batch of the diffusion loss: noised latents, and the target that the denoiser has there."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from mediffusion_core.diffusion.losses import diffusion_loss
from mediffusion_core.diffusion.process import DiffusionProcess


@dataclass(frozen=True)
class Denoising:
    """Noised latents and the denoiser's target for each."""

    inputs: Tensor
    """z_t (B, c, h, w)."""
    timesteps: Tensor
    """(B,)."""
    target: Tensor
    """ε, v or z_0, (B, c, h, w)."""

    @classmethod
    def of(
        cls, process: DiffusionProcess, latents: Tensor, timesteps: Tensor, noise: Tensor
    ) -> Self:
        """Noises latents.

        Args:
            process: On the device of the latents.
            latents: z_0 (B, c, h, w).
            timesteps: (B,), on any device.
            noise: ε (B, c, h, w).
        """
        inputs = process.add_noise(latents, noise, timesteps)
        target = process.target(latents, noise, timesteps)
        return cls(inputs, timesteps.to(latents.device), target)

    def take(self, rows: Tensor) -> Self:
        """Some of the rows."""
        rows = rows.to(self.inputs.device)
        return replace(
            self,
            inputs=self.inputs[rows],
            timesteps=self.timesteps[rows],
            target=self.target[rows],
        )

    def losses(self, output: Tensor) -> Tensor:
        """Mean squared error of each row, (B,)."""
        return diffusion_loss(output.float(), self.target)
