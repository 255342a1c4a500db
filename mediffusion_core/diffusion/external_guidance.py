"""Counterfactuals by a classifier that is no part of the model: what ours are held against."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.diffusion.noise_process import noise_from, predict_clean
from mediffusion_core.diffusion.pull import guided_timesteps, normalised_pull, pulled_noise
from mediffusion_core.diffusion.search import search_counterfactuals
from mediffusion_core.diffusion.solvers import solver_steps
from mediffusion_core.diffusion.source_path import inverted_path, noised_path
from mediffusion_core.diffusion.target import Target
from mediffusion_core.model import JointUNet
from mediffusion_core.settings import CounterfactualSettings, Prediction

Classifier = Callable[[Tensor], Tensor]
"""f, from clean latents (B, c, h, w) to logits (B, C), differentiable."""


def externally_guided_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    classifier: Classifier,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """Latents of counterfactuals that another classifier pulls, and for which it alone decides.

    The search is that of our guidance, and so are the way up, steps, scale, closeness and the hold
    on other findings, so that what differs is who pulls. There is no mask, which is our head's.

    Args:
        model: The joint UNet, in evaluation mode; its head is not asked.
        alphas_cumprod: ᾱ (T,).
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        classifier: f.
        settings: Guidance; its mask is not used.
        prediction: What the network predicts.

    Returns:
        (B, c, h, w).
    """

    def attempt(rows: Tensor, wish: Target, tried: CounterfactualSettings) -> Tensor:
        chosen = latents[rows]
        return _one_attempt(model, alphas_cumprod, chosen, wish, classifier, tried, prediction)

    return search_counterfactuals(latents, target, settings, classifier, attempt)


def _one_attempt(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    classifier: Classifier,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """Up to `start` and back under guidance through the denoiser, for all images alike.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(f(ẑ_0(z_t)), target): forward guidance
    (arXiv 2302.07121, equation 6) with a normalised gradient.
    """
    timesteps = guided_timesteps(alphas_cumprod, settings)
    if settings.inversion:
        path = inverted_path(model, alphas_cumprod, latents, timesteps, prediction)
    else:
        path = noised_path(alphas_cumprod, latents, timesteps, settings.noise_seed)
    with torch.no_grad():
        source_logits = classifier(latents)
    current, everywhere = path.latents[0], latents.new_ones(1, 1, *latents.shape[2:])
    taken = solver_steps(settings.solver, alphas_cumprod, timesteps)
    for step, now in enumerate(timesteps):
        at = torch.full((len(latents),), now, device=latents.device)
        alpha_bar = alphas_cumprod[now]
        with torch.enable_grad():
            inputs = current.detach().requires_grad_(True)
            noise_pred = noise_from(model.denoise(inputs, at), inputs, alpha_bar, prediction)
            logits = classifier(predict_clean(inputs, noise_pred, alpha_bar))
            loss = target.loss(logits, source_logits, settings.hold).sum()
            (gradient,) = torch.autograd.grad(loss, inputs)
        confidence = target.confidence(target.probabilities(logits.detach()))
        pull = normalised_pull(gradient, confidence, everywhere)
        noise_pred = noise_pred.detach()
        noise_pred = pulled_noise(current, noise_pred, pull, latents, alpha_bar, settings)
        current = taken(step, current, noise_pred)
    return current.detach()
