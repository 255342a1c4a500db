"""Baseline: counterfactuals that are guided by a classifier outside the model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.guided_denoising import Guidance, guided_denoising
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.inversion import source_latents
from mediffusion_core.counterfactuals.search import Classify, search_counterfactuals
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import CLEAN, DiffusionProcess
from mediffusion_core.settings import CounterfactualSettings

Classifier = Callable[[Tensor], Tensor]
"""f, from clean latents (B, c, h, w) to calibrated logits (B, C), differentiable."""


@dataclass(frozen=True)
class ExternalGuide:
    """The denoiser of a model, and an external classifier of the clean latents that it predicts."""

    model: GuidedModel
    """Its head is not used."""
    classifier: Classifier

    @property
    def process(self) -> DiffusionProcess:
        """The noise process."""
        return self.model.process

    def noise_pred(self, latents: Tensor, timestep: int) -> Tensor:
        """ε̂ (B, c, h, w) of z_t (B, c, h, w)."""
        return self.model.noise_pred(latents, timestep)

    def noise_pred_and_logits(self, latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """ε̂ and the logits (B, C) f(ẑ_0(z_t)): forward guidance, arXiv 2302.07121, eq. 6."""
        noise_pred = self.noise_pred(latents, timestep)
        clean = self.process.predict_clean(latents, noise_pred, timestep)
        return noise_pred, self.classifier(clean)


def externally_guided_latents(
    model: GuidedModel,
    latents: Tensor,
    target: Target,
    classifier: Classifier,
    settings: CounterfactualSettings,
    classify: Classify | None = None,
) -> Tensor:
    """Latents of counterfactuals that an external classifier guides and accepts.

    Search, noise, steps, scales and the loss are those of `counterfactual_latents`, so that only
    the guiding classifier differs. There is no mask, since the mask is the head's. The classifier
    guides at every noise level, since its input is a clean latent at each.

    Args:
        model: The denoiser; its head is not used.
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: The classification of the counterfactuals.
        classifier: f.
        settings: Guidance; its mask is not used.
        classify: How candidates are classified; by f where None.

    Returns:
        (B, c, h, w).
    """
    guide = ExternalGuide(model, classifier)
    everywhere = latents.new_ones(1, 1, *latents.shape[2:])

    def candidate(rows: Tensor, asked: Target, settings: CounterfactualSettings) -> Tensor:
        source = source_latents(model, latents[rows], settings)
        with torch.no_grad():
            logits = classifier(source[CLEAN])
        guidance = Guidance(asked, dict.fromkeys(source, logits), everywhere, settings)
        return guided_denoising(guide, source, guidance)

    unmasked = settings.model_copy(update={"mask_threshold": 0.0})

    def by_guide(clean: Tensor, rows: Tensor) -> Tensor:
        return classifier(clean)

    return search_counterfactuals(latents, target, unmasked, classify or by_guide, candidate)
