"""The noise process: q(z_t | z_0), what a network predicts of z_t, and how one converts to another.

The symbols are those of DDPM (arXiv 2006.11239): ᾱ_t is `alphas_cumprod`, z_0 the clean latent.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mediffusion_core.settings import DiffusionSettings, Prediction

CLEAN = -1
"""The level below the first timestep, z_0 itself: ᾱ is 1 there."""

BETA_START, BETA_END = 0.0015, 0.0195
"""β of the first and the last timestep, as in the code of the reference."""

Level = int | Tensor
"""A timestep for all latents of a batch, or `CLEAN`; or a timestep for each, (B,) integers."""


@dataclass(frozen=True, eq=False)
class DiffusionProcess:
    """The noise schedule, and what the network predicts.

    Latents, noise and predictions are (B, c, h, w), on the device of `alphas_cumprod`.
    """

    alphas_cumprod: Tensor
    """ᾱ (T,)."""
    prediction: Prediction
    """Target of the network: the noise, the velocity or the clean latent."""

    @classmethod
    def of(cls, settings: DiffusionSettings) -> Self:
        """ᾱ_t = Π (1 - β_s) for s ≤ t, with β linear in its square root; float32.

        Source: arXiv 2006.11239, section 2; the schedule of arXiv 2112.10752.
        """
        start, end = BETA_START**0.5, BETA_END**0.5
        roots = torch.linspace(start, end, settings.timesteps, dtype=torch.float64)
        return cls(torch.cumprod(1 - roots.square(), dim=0).float(), settings.prediction)

    def to(self, device: torch.device) -> Self:
        """The same process on another device."""
        return type(self)(self.alphas_cumprod.to(device), self.prediction)

    @property
    def device(self) -> torch.device:
        """Where latents must be."""
        return self.alphas_cumprod.device

    def __len__(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    def alpha_bar(self, level: Level) -> Tensor:
        """ᾱ at a level, (1, 1, 1, 1), or at the levels of a batch, (B, 1, 1, 1)."""
        if isinstance(level, Tensor):
            values = self.alphas_cumprod[level.to(self.device)]
        elif level == CLEAN:
            values = self.alphas_cumprod.new_ones(())
        else:
            values = self.alphas_cumprod[level]
        return values.reshape(-1, 1, 1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, level: Level) -> Tensor:
        """z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) ε (arXiv 2006.11239, eq. 4)."""
        alpha_bar = self.alpha_bar(level)
        return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise

    def predict_clean(self, latents: Tensor, noise_pred: Tensor, level: Level) -> Tensor:
        """ẑ_0 = (z_t - √(1 - ᾱ_t) ε̂) / √ᾱ_t (arXiv 2006.11239, eq. 15)."""
        alpha_bar = self.alpha_bar(level)
        return (latents - (1 - alpha_bar).sqrt() * noise_pred) / alpha_bar.sqrt()

    def noise_between(self, latents: Tensor, clean: Tensor, level: Level) -> Tensor:
        """ε = (z_t - √ᾱ_t z_0) / √(1 - ᾱ_t), the noise that leads from z_0 to z_t (eq. 4)."""
        alpha_bar = self.alpha_bar(level)
        return (latents - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()

    def target(self, clean: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Target of the network for z_t: ε, z_0, or v_t = √ᾱ_t ε - √(1 - ᾱ_t) z_0.

        v is defined in arXiv 2202.00512, appendix D.
        """
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        alpha_bar = self.alpha_bar(level)
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean

    def noise_pred(self, output: Tensor, latents: Tensor, level: Level) -> Tensor:
        """ε̂ of z_t from the network's output; of v̂ it is √ᾱ_t v̂ + √(1 - ᾱ_t) z_t."""
        if self.prediction == "epsilon":
            return output
        if self.prediction == "sample":
            return self.noise_between(latents, output, level)
        alpha_bar = self.alpha_bar(level)
        return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * latents
