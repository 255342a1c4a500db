"""One batch of the denoiser: latents at some noise level, and how far a prediction is off."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from mediffusion_core.diffusion.losses import diffusion_loss, min_snr_weight
from mediffusion_core.diffusion.process import add_noise, prediction_target
from mediffusion_core.settings import Prediction


@dataclass(frozen=True)
class Denoising:
    """Noised latents, and what the network is to predict of them."""

    inputs: Tensor
    """z_t (B, c, h, w)."""
    timesteps: Tensor
    """(B,)."""
    alpha_bar: Tensor
    """ᾱ_t (B,)."""
    target: Tensor
    """(B, c, h, w)."""
    prediction: Prediction
    """What the target is."""

    @classmethod
    def of(
        cls,
        latents: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        alphas_cumprod: Tensor,
        prediction: Prediction,
    ) -> Self:
        """Noises latents (B, c, h, w), on whose device all of it stands afterwards.

        Args:
            latents: z_0.
            timesteps: (B,), on the CPU.
            noise: ε, as the latents.
            alphas_cumprod: ᾱ (T,), on the CPU.
            prediction: What the network learns to predict.
        """
        alpha_bar = alphas_cumprod[timesteps].to(latents.device)
        target = prediction_target(latents, noise, alpha_bar, prediction)
        inputs = add_noise(latents, noise, alpha_bar)
        return cls(inputs, timesteps.to(latents.device), alpha_bar, target, prediction)

    def take(self, rows: Tensor) -> Self:
        """Some of the rows."""
        rows = rows.to(self.inputs.device)
        return replace(
            self,
            inputs=self.inputs[rows],
            timesteps=self.timesteps[rows],
            alpha_bar=self.alpha_bar[rows],
            target=self.target[rows],
        )

    def losses(self, output: Tensor, min_snr_gamma: float | None) -> Tensor:
        """Mean squared error of each row, (B,), with γ weighted by its noise level."""
        losses = diffusion_loss(output.float(), self.target)
        if min_snr_gamma is None:
            return losses
        return losses * min_snr_weight(self.alpha_bar, self.prediction, min_snr_gamma)
