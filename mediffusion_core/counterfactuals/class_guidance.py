"""Drawing latents of given labels: classifier guidance from noise on."""

import torch
from torch import Tensor

from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.diffusion.process import ddim_step


def sample_labelled_latents(
    model: GuidedModel,
    noise: Tensor,
    labels: Tensor,
    *,
    multi_label: bool,
    steps: int,
    scale: float,
) -> Tensor:
    """Turns noise into latents that the head gives the labels to.

    ε̂ ← ε̂ - s √(1 - ᾱ_t) ∇_{z_t} log p(y | z_t) (arXiv 2105.05233, algorithm 2), with deterministic
    DDIM steps. p is the head's at the noisy latent; of several findings it is the product over
    those that are known. The head knows noise up to the level that it was trained at, and above
    it is not asked; one that knows none is asked throughout.

    Args:
        model: Denoiser and head.
        noise: (B, c, h, w), standard normal.
        labels: y (B, classes) in {0, 1}, NaN where anything may be.
        multi_label: Whether the classes are independent.
        steps: Denoising steps.
        scale: s; 1 is Bayes' rule, more sharpens p.

    Returns:
        Scaled latents (B, c, h, w).
    """
    alphas_cumprod = model.alphas_cumprod
    timesteps = descending_timesteps(len(alphas_cumprod) - 1, steps)
    asked, latents = set(model.asked(timesteps)), noise
    for now, after in zip(timesteps, [*timesteps[1:], -1], strict=True):
        alpha_bar = alphas_cumprod[now]
        with torch.no_grad():
            noise_pred = model.noise_pred(latents, now)
        if now in asked:
            slope = _log_likelihood_slope(model, latents, now, labels, multi_label)
            noise_pred = noise_pred - scale * (1 - alpha_bar).sqrt() * slope
        previous = alphas_cumprod[after] if after >= 0 else alphas_cumprod.new_ones(())
        latents = ddim_step(latents, noise_pred, alpha_bar, previous)
    return latents


def _log_likelihood_slope(
    model: GuidedModel, latents: Tensor, timestep: int, labels: Tensor, multi_label: bool
) -> Tensor:
    """∇_{z_t} log p(y | z_t), (B, c, h, w)."""
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        loss = classification_loss(model.classify(inputs, timestep), labels, multi_label)
        if multi_label:  # the loss is the mean over the findings
            loss = loss * labels.shape[1]
        (slope,) = torch.autograd.grad(-loss.sum(), inputs)
    return slope.detach()
