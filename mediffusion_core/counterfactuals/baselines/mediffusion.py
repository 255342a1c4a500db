"""The counterfactuals of Mediffusion's authors, to hold ours against."""

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import add_noise, ddpm_step, predict_clean


def reference_counterfactual_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    *,
    start: float,
    scale: float,
    seed: int,
) -> Tensor:
    """Noise to t, all t steps down under the clean head's gradient (arXiv 2411.09434).

    ε̂ ← ε̂ + s √(1 - ᾱ_t) ∇_{z_t} Σ_batch BCE(head(ẑ_0(z_t), t), target), then a step of DDPM. The
    gradient goes through the denoiser, is not normalised, and knows neither the source nor the
    findings that were not asked for. The authors take s and t of 200 to 500.

    Args:
        model: Denoiser and head.
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        start: Noise level to start from, as a fraction of T.
        scale: s.
        seed: Draws the noise, the same for every image.

    Returns:
        (B, c, h, w).
    """
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        drawn = torch.randn(latents.shape[1:], generator=generator)
        return drawn.to(latents.device).expand_as(latents)

    alphas_cumprod = model.alphas_cumprod
    first = round(start * (len(alphas_cumprod) - 1))
    current = add_noise(latents, noise(), alphas_cumprod[first])
    for t in range(first, -1, -1):
        alpha_bar = alphas_cumprod[t]
        with torch.enable_grad():
            inputs = current.detach().requires_grad_(True)
            noise_pred = model.noise_pred(inputs, t)
            clean = predict_clean(inputs, noise_pred, alpha_bar)
            logits = model.classify_uncalibrated(clean, t)
            loss = target.loss(logits, None).sum()
            (gradient,) = torch.autograd.grad(loss, inputs)
        noise_pred = noise_pred.detach() + scale * (1 - alpha_bar).sqrt() * gradient
        current = ddpm_step(current, noise_pred, noise(), alphas_cumprod, t)
    return current
