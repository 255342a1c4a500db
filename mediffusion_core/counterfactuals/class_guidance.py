"""Sampling latents with given labels by classifier guidance."""

from functools import partial

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.diffusion.samplers import ddim_step, denoise, sampling_levels


def sample_labelled_latents(
    model: GuidedModel,
    noise: Tensor,
    labels: Tensor,
    *,
    multi_label: bool,
    steps: int,
    scale: float,
) -> Tensor:
    """Samples latents that the head classifies as the labels say.

    ε̂ ← ε̂ - s √(1 - ᾱ_t) ∇_{z_t} log p(y | z_t) (arXiv 2105.05233, algorithm 2), with deterministic
    DDIM steps. p is the head's at the noisy latent; of several findings it is the product over
    the known ones. There is guidance only at noise levels on which the head was trained; a head
    that was trained on clean latents alone guides at all of them.

    Args:
        model: Denoiser and head.
        noise: (B, c, h, w), standard normal.
        labels: y (B, classes) in {0, 1}, NaN where a finding may be present or absent.
        multi_label: Whether the classes are independent.
        steps: Denoising steps.
        scale: s; 1 is Bayes' rule, more sharpens p.

    Returns:
        Scaled latents (B, c, h, w).
    """
    levels = sampling_levels(len(model.process), steps)
    guided = set(model.guided(levels[:-1]))

    def predict(latents: Tensor, timestep: int) -> Tensor:
        with torch.no_grad():
            noise_pred = model.noise_pred(latents, timestep)
        if timestep not in guided:
            return noise_pred
        gradient = _log_likelihood_gradient(model, latents, timestep, labels, multi_label)
        return noise_pred - scale * (1 - model.process.alpha_bar(timestep)).sqrt() * gradient

    return denoise(predict, partial(ddim_step, model.process), noise, levels)


def _log_likelihood_gradient(
    model: GuidedModel, latents: Tensor, timestep: int, labels: Tensor, multi_label: bool
) -> Tensor:
    """∇_{z_t} log p(y | z_t), (B, c, h, w)."""
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        loss = classification_loss(model.classify(inputs, timestep), labels, multi_label)
        if multi_label:  # the loss is the mean over the findings
            loss = loss * labels.shape[1]
        (gradient,) = torch.autograd.grad(-loss.sum(), inputs)
    return gradient.detach()
