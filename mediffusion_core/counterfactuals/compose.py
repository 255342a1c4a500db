"""Guided counterfactuals: the same image, as the classifier would see it with another label.

The source is taken up to a noise level; on the way back the head's gradient at the noisy latent
pulls towards the target. The head is trained on noise, up to a level, so its gradient there means
something, and above it is not asked; one that was trained on none has nothing better to offer than
being asked at every level. What need not change is kept: the mask of what may change
comes from where the head looks along the source's own path, and everything outside follows that
path.
"""

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.guided_denoising import pulled_by, way_back
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.inversion import (
    change_mask,
    inverted_path,
    logits_along,
    noised_path,
    seen_along,
)
from mediffusion_core.counterfactuals.search import Look, search_counterfactuals
from mediffusion_core.counterfactuals.target import Target
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
    saliency = None
    if not settings.inversion:  # then it is the same for every draw
        saliency = source_saliency(model, latents, target, settings)

    def attempt(rows: Tensor, wish: Target, tried: CounterfactualSettings) -> Tensor:
        part = None if saliency is None else saliency[rows]
        return guided_latents(model, latents[rows], wish, tried, part)

    def clean(made: Tensor) -> Tensor:
        return model.classify(made, 0)

    return search_counterfactuals(latents, target, settings, look or clean, attempt)


def guided_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    saliency: Tensor | None = None,
) -> Tensor:
    """One attempt: up to `start` and back under guidance, for all images alike.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. The other findings are held at what the head says of the
    source at the same noise level. Then ẑ_0 is moved by `closeness` towards the source, and
    outside the mask each step ends on the source's path (arXiv 2201.09865, eq. 8). An image is
    pulled until its target is sure, half way from `confidence` to certainty, and none is pulled at
    noise that the head was not trained on, if it was trained on noise at all.

    Takes and returns what `counterfactual_latents` does, and takes the saliency (B, 1, h, w) where
    it is known, as `source_saliency` finds it.
    """
    timesteps = settings.timesteps(len(model.alphas_cumprod))
    if settings.inversion:
        path = inverted_path(model, latents, timesteps)
        source_logits, saliency = logits_along(model, path, target)
    else:
        path = noised_path(model.alphas_cumprod, latents, timesteps, settings.noise_seed)
        source_logits = seen_along(model, path)
        if saliency is None:
            saliency = source_saliency(model, latents, target, settings)
    mask = change_mask(saliency, settings.mask_threshold)

    def pull(current: Tensor, now: int) -> tuple[Tensor, Tensor]:
        if now not in source_logits:
            with torch.no_grad():
                return model.noise_pred(current, now), torch.zeros_like(current)

        def see(inputs: Tensor) -> tuple[Tensor, Tensor]:
            return model.noise_pred_and_logits(inputs, now)

        return pulled_by(see, current, target, source_logits[now], mask, settings)

    return way_back(model.alphas_cumprod, path, mask, pull, settings)


def source_saliency(
    model: GuidedModel, latents: Tensor, target: Target, settings: CounterfactualSettings
) -> Tensor:
    """Where the head looks for the target along the images' inverted paths, (B, 1, h, w).

    Of a drawn noise it would be another for every draw. Takes what `counterfactual_latents` does.
    """
    path = inverted_path(model, latents, settings.timesteps(len(model.alphas_cumprod)))
    return logits_along(model, path, target)[1]
