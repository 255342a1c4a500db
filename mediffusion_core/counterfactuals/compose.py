"""Guided counterfactuals: the nearest image that the classifier assigns to another class.

The source is noised or inverted up to a noise level. Guided denoising then follows the gradient of
the head at the noisy latent towards the target. The head is trained on noise up to a level, so its
gradient is meaningful there; above that level there is no guidance. Outside a mask the result keeps
the source's latents. The mask is the saliency of the target in the inverted source, within the
cells that a user lets change.
"""

from torch import Tensor

from mediffusion_core.counterfactuals.guided_denoising import Guidance, guided_denoising
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.inversion import (
    change_mask,
    inverted_latents,
    logits_and_saliency,
    source_latents,
    source_logits,
)
from mediffusion_core.counterfactuals.search import Classify, search_counterfactuals
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.settings import CounterfactualSettings


def counterfactual_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    classify: Classify | None = None,
    editable: Tensor | None = None,
) -> Tensor:
    """Latents of near images that the classifier assigns to the target, by a search.

    Args:
        model: Denoiser and head.
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: The classification of the counterfactuals.
        settings: Guidance.
        classify: How candidates are classified, in calibrated logits; by the head at the clean
            latent where None.
        editable: Cells that may change, (B, 1, h, w) in {0, 1}; all where None.

    Returns:
        (B, c, h, w).
    """
    saliency = None
    if not settings.inversion:  # then it is the same for every candidate
        saliency = source_saliency(model, latents, target, settings)

    def candidate(rows: Tensor, asked: Target, settings: CounterfactualSettings) -> Tensor:
        salient, cells = (None if part is None else part[rows] for part in (saliency, editable))
        return guided_latents(model, latents[rows], asked, settings, salient, cells)

    def by_head(clean: Tensor, rows: Tensor) -> Tensor:
        return model.classify(clean, 0)

    return search_counterfactuals(latents, target, settings, classify or by_head, candidate)


def guided_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    saliency: Tensor | None = None,
    editable: Tensor | None = None,
) -> Tensor:
    """One candidate for each image: up to `strength`, and denoised under guidance.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. The loss preserves the other findings as the head finds them
    in the source at the same noise level. Then ẑ_0 is moved by `proximity_weight` towards the
    source, and outside the mask each step ends on the source's latents (arXiv 2201.09865, eq. 8).
    Guidance of an image ends where the target's probability is half way from `confidence` to 1.
    There is none at noise levels on which the head was not trained, unless it was trained on clean
    latents alone.

    Takes and returns what `counterfactual_latents` does, and takes the saliency (B, 1, h, w) where
    it is known, as `source_saliency` computes it.
    """
    source = source_latents(model, latents, settings)
    if settings.inversion:
        logits, saliency = logits_and_saliency(model, source, target)
    else:
        logits = source_logits(model, source)
        if saliency is None:
            saliency = source_saliency(model, latents, target, settings)
    mask = change_mask(saliency, settings.mask_threshold, editable)
    return guided_denoising(model, source, Guidance(target, logits, mask, settings))


def source_saliency(
    model: GuidedModel, latents: Tensor, target: Target, settings: CounterfactualSettings
) -> Tensor:
    """Saliency (B, 1, h, w) of the target in the inverted source.

    In a noised source it would depend on the drawn noise. Takes what `counterfactual_latents` does.
    """
    timesteps = settings.timesteps(len(model.process))
    source = inverted_latents(model, latents, timesteps)
    _, saliency = logits_and_saliency(model, source, target)
    return saliency
