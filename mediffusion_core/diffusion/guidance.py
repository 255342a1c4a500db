"""Guided counterfactuals: the same image, as the classifier would see it with another label.

The source is taken up to a noise level; on the way back the head's gradient at the noisy latent
pulls towards the target. The head is trained on noise, up to a level, so its gradient there means
something. What need not change is kept: the mask of what may change comes from where the head
looks along the source's own path, and everything outside follows that path.
"""

import torch
from torch import Tensor

from mediffusion_core.diffusion.noise_process import noise_from
from mediffusion_core.diffusion.pull import guided_timesteps, normalised_pull, pulled_noise
from mediffusion_core.diffusion.search import Look, search_counterfactuals
from mediffusion_core.diffusion.solvers import solver_steps
from mediffusion_core.diffusion.source_path import (
    SourcePath,
    change_mask,
    inverted_path,
    logits_along,
    noised_path,
    seen_along,
)
from mediffusion_core.diffusion.target import Target
from mediffusion_core.model import JointUNet
from mediffusion_core.settings import CounterfactualSettings, Prediction


def counterfactual_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
    look: Look | None = None,
) -> Tensor:
    """Latents of near images that the classifier assigns to the target, by a search.

    Args:
        model: The joint UNet, in evaluation mode.
        alphas_cumprod: ᾱ (T,).
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        settings: Guidance.
        prediction: What the network predicts.
        look: How the result is classified; by the head at the clean latent where None.

    Returns:
        (B, c, h, w).
    """
    mask = None
    if not settings.inversion:  # then it is the same for every draw
        mask = source_mask(model, alphas_cumprod, latents, target, settings, prediction)

    def attempt(rows: Tensor, wish: Target, tried: CounterfactualSettings) -> Tensor:
        part = None if mask is None else mask[rows]
        return guided_latents(model, alphas_cumprod, latents[rows], wish, tried, prediction, part)

    return search_counterfactuals(latents, target, settings, look or model.classify, attempt)


def guided_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
    mask: Tensor | None = None,
) -> Tensor:
    """One attempt: up to `start` and back under guidance, for all images alike.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. The other findings are held at what the head says of the
    source at the same noise level. Then ẑ_0 is moved by `closeness` towards the source, and
    outside the mask each step ends on the source's path (arXiv 2201.09865, eq. 8). An image whose
    target is sure is not pulled.

    Takes and returns what `counterfactual_latents` does, and takes the mask (B, 1, h, w) where it
    is known, as `source_mask` finds it.
    """
    timesteps = guided_timesteps(alphas_cumprod, settings)
    if settings.inversion:
        path = inverted_path(model, alphas_cumprod, latents, timesteps, prediction)
        source_logits, saliency = logits_along(model, path, target)
        mask = change_mask(saliency, settings.mask_threshold)
    else:
        path = noised_path(alphas_cumprod, latents, timesteps, settings.noise_seed)
        source_logits = seen_along(model, path)
        if mask is None:
            mask = source_mask(model, alphas_cumprod, latents, target, settings, prediction)
    return _way_back(model, alphas_cumprod, path, source_logits, mask, target, settings, prediction)


def source_mask(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """Where the images may change, (B, 1, h, w): where the head looks along their inverted paths.

    A drawn noise would draw the mask, too. Takes what `counterfactual_latents` does.
    """
    timesteps = guided_timesteps(alphas_cumprod, settings)
    path = inverted_path(model, alphas_cumprod, latents, timesteps, prediction)
    return change_mask(logits_along(model, path, target)[1], settings.mask_threshold)


def _way_back(
    model: JointUNet,
    alphas_cumprod: Tensor,
    path: SourcePath,
    source_logits: list[Tensor],
    mask: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """From the path's noisiest level to clean latents (B, c, h, w), step by step."""
    timesteps, latents = path.timesteps, path.latents[-1]
    current = path.latents[0]
    taken = solver_steps(settings.solver, alphas_cumprod, timesteps)
    for step, now in enumerate(timesteps):
        alpha_bar = alphas_cumprod[now]
        output, pull = _pulled(model, current, now, target, source_logits[step], mask, settings)
        noise_pred = noise_from(output, current, alpha_bar, prediction)
        noise_pred = pulled_noise(current, noise_pred, pull, latents, alpha_bar, settings)
        current = taken(step, current, noise_pred)
        current = mask * current + (1 - mask) * path.latents[step + 1]
    return current


def _pulled(
    model: JointUNet,
    latents: Tensor,
    timestep: int,
    target: Target,
    source_logits: Tensor,
    mask: Tensor,
    settings: CounterfactualSettings,
) -> tuple[Tensor, Tensor]:
    """What the network predicts, and the gradient within the mask at an RMS of 1; (B, c, h, w)."""
    at = torch.full((len(latents),), timestep, device=latents.device)
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        output, logits = model(inputs, at)
        loss = target.loss(logits, source_logits, settings.hold).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
    confidence = target.confidence(target.probabilities(logits.detach()))
    return output.detach(), normalised_pull(gradient, confidence, mask)
