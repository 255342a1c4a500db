"""The Mediffusion baseline: counterfactuals by the procedure of the method's authors."""

from functools import partial

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import CLEAN
from mediffusion_core.diffusion.samplers import ddpm_step, denoise


def mediffusion_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    *,
    strength: float,
    guidance_scale: float,
    seed: int,
) -> Tensor:
    """Noise to t, then all t DDPM steps under the gradient of the clean head (arXiv 2411.09434).

    ε̂ ← ε̂ + s √(1 - ᾱ_t) ∇_{z_t} Σ_batch BCE(head(ẑ_0(z_t), t), target). The gradient goes through
    the denoiser and is not normalised; nothing preserves the source or the other findings. The
    authors take s and t of 200 to 500.

    Args:
        model: Denoiser and head.
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: The classification of the counterfactuals.
        strength: Noise level to start from, as a fraction of T.
        guidance_scale: s.
        seed: Of the noise, the same for every image.

    Returns:
        (B, c, h, w).
    """
    process = model.process
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        drawn = torch.randn(latents.shape[1:], generator=generator)
        return drawn.to(latents.device).expand_as(latents)

    def predict(current: Tensor, timestep: int) -> Tensor:
        with torch.enable_grad():
            inputs = current.detach().requires_grad_(True)
            noise_pred = model.noise_pred(inputs, timestep)
            clean = process.predict_clean(inputs, noise_pred, timestep)
            logits = model.classify_uncalibrated(clean, timestep)
            (gradient,) = torch.autograd.grad(target.loss(logits, None).sum(), inputs)
        scale = guidance_scale * (1 - process.alpha_bar(timestep)).sqrt()
        return noise_pred.detach() + scale * gradient

    first = round(strength * (len(process) - 1))
    levels = [*range(first, CLEAN, -1), CLEAN]
    start = process.add_noise(latents, noise(), first)
    return denoise(predict, partial(ddpm_step, process, noise), start, levels)
