"""Counterfactuals by a classifier that is no part of the model: what ours are held against."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.guided_denoising import pulled_by, way_back
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.inversion import inverted_path, noised_path
from mediffusion_core.counterfactuals.search import Look, search_counterfactuals
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import predict_clean
from mediffusion_core.settings import CounterfactualSettings

Classifier = Callable[[Tensor], Tensor]
"""f, from clean latents (B, c, h, w) to calibrated logits (B, C), differentiable."""


def externally_guided_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    classifier: Classifier,
    settings: CounterfactualSettings,
    look: Look | None = None,
) -> Tensor:
    """Latents of counterfactuals that another classifier pulls, and for which it alone decides.

    The search is that of our guidance, with as many draws where noise is drawn, and so are the way
    up, steps, scale, closeness and the hold on other findings, so that what differs is who pulls.
    There is no mask, which is our head's, and it pulls at every noise level, since what it sees is
    a clean image at each.

    Args:
        model: The denoiser; its head is not asked.
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        classifier: f.
        settings: Guidance; its mask is not used.
        look: How the result is classified; by f where None.

    Returns:
        (B, c, h, w).
    """

    def attempt(rows: Tensor, wish: Target, tried: CounterfactualSettings) -> Tensor:
        return _one_attempt(model, latents[rows], wish, classifier, tried)

    unmasked = settings.model_copy(update={"mask_threshold": 0.0})
    return search_counterfactuals(latents, target, unmasked, look or classifier, attempt)


def _one_attempt(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    classifier: Classifier,
    settings: CounterfactualSettings,
) -> Tensor:
    """Up to `start` and back under guidance through the denoiser, for all images alike.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(f(ẑ_0(z_t)), target): forward guidance
    (arXiv 2302.07121, equation 6) with a normalised gradient.
    """
    alphas_cumprod = model.alphas_cumprod
    timesteps = settings.timesteps(len(alphas_cumprod))
    if settings.inversion:
        path = inverted_path(model, latents, timesteps)
    else:
        path = noised_path(alphas_cumprod, latents, timesteps, settings.noise_seed)
    everywhere = latents.new_ones(1, 1, *latents.shape[2:])
    with torch.no_grad():
        source_logits = classifier(latents)

    def pull(current: Tensor, now: int) -> tuple[Tensor, Tensor]:
        def see(inputs: Tensor) -> tuple[Tensor, Tensor]:
            noise_pred = model.noise_pred(inputs, now)
            return noise_pred, classifier(predict_clean(inputs, noise_pred, alphas_cumprod[now]))

        return pulled_by(see, current, target, source_logits, everywhere, settings)

    return way_back(alphas_cumprod, path, everywhere, pull, settings)
