"""Guided counterfactuals: the same image, as the classifier would see it with another label.

The source is taken up to a noise level; on the way back the head's gradient at the noisy latent
pulls towards the target. The head is trained on noise, up to a level, so its gradient there means
something, and above it is not asked. What need not change is kept: the mask of what may change
comes from where the head looks along the source's own path, and everything outside follows that
path.
"""

import torch
from torch import Tensor

from mediffusion_core.diffusion.guided_model import GuidedModel
from mediffusion_core.diffusion.search import Look, search_counterfactuals
from mediffusion_core.diffusion.source_path import (
    change_mask,
    inverted_path,
    logits_along,
    noised_path,
    seen_along,
)
from mediffusion_core.diffusion.target import Target
from mediffusion_core.diffusion.way_back import guided_timesteps, normalised_pull, way_back
from mediffusion_core.settings import CounterfactualSettings


def counterfactual_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    look: Look | None = None,
) -> Tensor:
    """Latents of near images that the classifier assigns to the target, by a search.

    Args:
        model: Denoiser and head.
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        settings: Guidance.
        look: How the result is classified, in calibrated logits; by the head at the clean latent
            where None.

    Returns:
        (B, c, h, w).
    """
    mask = None
    if not settings.inversion:  # then it is the same for every draw
        mask = source_mask(model, latents, target, settings)

    def attempt(rows: Tensor, wish: Target, tried: CounterfactualSettings) -> Tensor:
        part = None if mask is None else mask[rows]
        return guided_latents(model, latents[rows], wish, tried, part)

    return search_counterfactuals(
        latents, target, settings, look or model.network.classify, attempt
    )


def guided_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    mask: Tensor | None = None,
) -> Tensor:
    """One attempt: up to `start` and back under guidance, for all images alike.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. The other findings are held at what the head says of the
    source at the same noise level. Then ẑ_0 is moved by `closeness` towards the source, and
    outside the mask each step ends on the source's path (arXiv 2201.09865, eq. 8). An image whose
    target is sure is not pulled, and none is at noise that the head was not trained on.

    Takes and returns what `counterfactual_latents` does, and takes the mask (B, 1, h, w) where it
    is known, as `source_mask` finds it.
    """
    timesteps = guided_timesteps(model.alphas_cumprod, settings)
    if settings.inversion:
        path = inverted_path(model, latents, timesteps)
        source_logits, saliency = logits_along(model, path, target)
        mask = change_mask(saliency, settings.mask_threshold)
    else:
        path = noised_path(model.alphas_cumprod, latents, timesteps, settings.noise_seed)
        source_logits = seen_along(model, path)
        mask = source_mask(model, latents, target, settings) if mask is None else mask

    def pull(current: Tensor, now: int) -> tuple[Tensor, Tensor]:
        if now not in source_logits:
            with torch.no_grad():
                return model.noise_pred(current, now), torch.zeros_like(current)
        with torch.enable_grad():
            inputs = current.detach().requires_grad_(True)
            noise_pred, logits = model.noise_pred_and_logits(inputs, now)
            loss = target.loss(logits, source_logits[now], settings.hold).sum()
            (gradient,) = torch.autograd.grad(loss, inputs)
        confidence = target.confidence(target.probabilities(logits.detach()))
        return noise_pred.detach(), normalised_pull(gradient, confidence, mask, settings)

    return way_back(model.alphas_cumprod, path, mask, pull, settings)


def source_mask(
    model: GuidedModel, latents: Tensor, target: Target, settings: CounterfactualSettings
) -> Tensor:
    """Where the images may change, (B, 1, h, w): where the head looks along their inverted paths.

    A drawn noise would draw the mask, too. Takes what `counterfactual_latents` does.
    """
    path = inverted_path(model, latents, guided_timesteps(model.alphas_cumprod, settings))
    return change_mask(logits_along(model, path, target)[1], settings.mask_threshold)
