"""Drawing latents of given labels: classifier guidance from noise on."""

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.diffusion.noise_process import ddim_step, descending_timesteps, noise_from
from mediffusion_core.model import JointUNet
from mediffusion_core.settings import Prediction


def sample_labelled_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    noise: Tensor,
    labels: Tensor,
    *,
    multi_label: bool,
    steps: int,
    scale: float,
    from_timestep: int,
    prediction: Prediction,
) -> Tensor:
    """Turns noise into latents that the head gives the labels to.

    ε̂ ← ε̂ - s √(1 - ᾱ_t) ∇_{z_t} log p(y | z_t) (arXiv 2105.05233, algorithm 2), with deterministic
    DDIM steps. p is the head's at the noisy latent; of several findings it is the product over
    those that are known. The head knows noise up to the level that it was trained at, and above
    it is not asked.

    Args:
        model: The joint UNet, in evaluation mode.
        alphas_cumprod: ᾱ (T,).
        noise: (B, c, h, w), standard normal.
        labels: y (B, classes) in {0, 1}, NaN where anything may be.
        multi_label: Whether the classes are independent.
        steps: Denoising steps.
        scale: s; 1 is Bayes' rule, more sharpens p.
        from_timestep: The noisiest timestep at which the head is asked.
        prediction: What the network predicts.

    Returns:
        Scaled latents (B, c, h, w).
    """
    timesteps = descending_timesteps(len(alphas_cumprod) - 1, steps)
    latents = noise
    for now, after in zip(timesteps, [*timesteps[1:], -1], strict=True):
        at = torch.full((len(latents),), now, device=latents.device)
        alpha_bar = alphas_cumprod[now]
        with torch.no_grad():
            noise_pred = noise_from(model.denoise(latents, at), latents, alpha_bar, prediction)
        if now <= from_timestep:
            slope = _log_likelihood_slope(model, latents, at, labels, multi_label)
            noise_pred = noise_pred - scale * (1 - alpha_bar).sqrt() * slope
        previous = alphas_cumprod[after] if after >= 0 else alphas_cumprod.new_ones(())
        latents = ddim_step(latents, noise_pred, alpha_bar, previous)
    return latents


def _log_likelihood_slope(
    model: JointUNet, latents: Tensor, timesteps: Tensor, labels: Tensor, multi_label: bool
) -> Tensor:
    """∇_{z_t} log p(y | z_t), (B, c, h, w)."""
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        loss = classification_loss(model.classify(inputs, timesteps), labels, multi_label)
        if multi_label:  # the loss is the mean over the findings
            loss = loss * labels.shape[1]
        (slope,) = torch.autograd.grad(-loss.sum(), inputs)
    return slope.detach()
