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
    SourcePrediction,
    change_mask,
    inverted_latents,
    predict_source,
    source_latents,
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
    predicted = None
    if not settings.inversion:  # then it is the same for every candidate
        predicted = _inverted_prediction(model, latents, target, settings)

    def candidate(rows: Tensor, asked: Target, settings: CounterfactualSettings) -> Tensor:
        known = None if predicted is None else predicted.rows(rows)
        cells = None if editable is None else editable[rows]
        return guided_latents(model, latents[rows], asked, settings, known, cells)

    def by_head(clean: Tensor, rows: Tensor) -> Tensor:
        return model.classify(clean, 0)

    return search_counterfactuals(latents, target, settings, classify or by_head, candidate)


def guided_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    predicted: SourcePrediction | None = None,
    editable: Tensor | None = None,
) -> Tensor:
    """One candidate for each image: up to `strength`, and denoised under guidance.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. The loss preserves the other findings as the head finds them
    in the inverted source at the same noise level. Then ẑ_0 is moved by `proximity_weight` towards
    the source, and outside the mask each step ends on the source's latents (arXiv 2201.09865, eq.
    8). Guidance of an image ends where the target's probability is half way from `confidence` to 1.
    There is none at noise levels on which the head was not trained, unless it was trained on clean
    latents alone.

    Takes and returns what `counterfactual_latents` does, and takes the prediction for the inverted
    source where it is known.
    """
    source = source_latents(model, latents, settings)
    if settings.inversion:
        predicted = predict_source(model, source, target)
    elif predicted is None:
        predicted = _inverted_prediction(model, latents, target, settings)
    mask = change_mask(predicted.saliency, settings.mask_threshold, editable)
    return guided_denoising(model, source, Guidance(target, predicted.logits, mask, settings))


def _inverted_prediction(
    model: GuidedModel, latents: Tensor, target: Target, settings: CounterfactualSettings
) -> SourcePrediction:
    source = inverted_latents(model, latents, settings.timesteps(len(model.process)))
    return predict_source(model, source, target)
