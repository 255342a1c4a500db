"""The forward process q(z_t | z_0) and its inverse relations, in the symbols of DDPM.

ᾱ_t is `alphas_cumprod`. All latents are (B, c, h, w), all timesteps (B,) integers.
"""

import torch
from torch import Tensor

from mediffusion_core.settings import DiffusionSettings, Prediction


def alphas_cumprod(settings: DiffusionSettings) -> Tensor:
    """ᾱ_t = Π (1 - β_s) for s ≤ t, with β linear in its square root; (T,) float32.

    Source: arXiv 2006.11239, section 2; the schedule of arXiv 2112.10752.
    """
    roots = torch.linspace(
        settings.beta_start**0.5, settings.beta_end**0.5, settings.timesteps, dtype=torch.float64
    )
    return torch.cumprod(1 - roots.square(), dim=0).float()


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = √ᾱ_t z_0 + √(1 - ᾱ_t) ε (arXiv 2006.11239, eq. 4); `alpha_bar` is (B,)."""
    alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def predict_clean(latents: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    """ẑ_0 = (z_t - √(1 - ᾱ_t) ε̂) / √ᾱ_t (arXiv 2006.11239, eq. 15); `alpha_bar` is (B,)."""
    alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
    return (latents - (1 - alpha_bar).sqrt() * noise_pred) / alpha_bar.sqrt()


def velocity(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """v_t = √ᾱ_t ε - √(1 - ᾱ_t) z_0 (arXiv 2202.00512, appendix D); `alpha_bar` is (B,)."""
    alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def prediction_target(
    latents: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: Prediction
) -> Tensor:
    """What the network should give for z_t: ε, v_t or z_0, (B, c, h, w)."""
    if prediction == "epsilon":
        return noise
    return velocity(latents, noise, alpha_bar) if prediction == "velocity" else latents


def noise_from(
    output: Tensor, latents: Tensor, alpha_bar: Tensor, prediction: Prediction
) -> Tensor:
    """ε̂ from what the network predicts, so that one sampler and one guidance serve all.

    ε̂ itself; from the velocity √ᾱ_t v̂ + √(1 - ᾱ_t) z_t; from the clean sample
    (z_t - √ᾱ_t ẑ_0) / √(1 - ᾱ_t).

    Args:
        output: The network's output (B, c, h, w).
        latents: z_t (B, c, h, w), its input.
        alpha_bar: ᾱ_t (B,).
        prediction: What the network was trained to predict.
    """
    if prediction == "epsilon":
        return output
    alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
    if prediction == "sample":
        return (latents - alpha_bar.sqrt() * output) / (1 - alpha_bar).sqrt()
    return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * latents


def ddim_step(latents: Tensor, noise_pred: Tensor, alpha_bar: Tensor, previous: Tensor) -> Tensor:
    """z_s = √ᾱ_s ẑ_0 + √(1 - ᾱ_s) ε̂, deterministic (arXiv 2010.02502, eq. 12 with σ = 0).

    Args:
        latents: z_t (B, c, h, w).
        noise_pred: ε̂ (B, c, h, w).
        alpha_bar: ᾱ_t (B,).
        previous: ᾱ_s (B,) of the less noisy level; 1 for the clean image.
    """
    return add_noise(predict_clean(latents, noise_pred, alpha_bar), noise_pred, previous)


def ddpm_step(latents: Tensor, noise_pred: Tensor, noise: Tensor, alphas: Tensor, t: int) -> Tensor:
    """A draw of z_{t-1} from the posterior given z_t and ẑ_0, with variance β̃_t.

    z_{t-1} = √ᾱ_{t-1} β_t / (1 - ᾱ_t) ẑ_0 + √α_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t) z_t + √β̃_t n
    (arXiv 2006.11239, eq. 7); at t = 0 it is ẑ_0.

    Args:
        latents: z_t (B, c, h, w).
        noise_pred: ε̂ (B, c, h, w).
        noise: n (B, c, h, w), standard normal.
        alphas: ᾱ of all steps (T,).
        t: The step.
    """
    alpha_bar = alphas[t]
    previous = alphas[t - 1] if t else alphas.new_ones(())
    alpha = alpha_bar / previous
    clean = predict_clean(latents, noise_pred, alpha_bar)
    mean = (previous.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - previous) * latents) / (
        1 - alpha_bar
    )
    variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha)
    return mean + variance.sqrt() * noise
