"""How the server evaluates a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel

Solver = Literal["ddim", "dpmsolver++"]
"""The solver of guided denoising, of first or of second order."""


class CounterfactualSettings(StrictModel):
    """Guided counterfactuals: noise level, guidance, search and preserved regions.

    The search makes up to `num_candidates` candidates. With inversion strength and scale rise to
    their values over the candidates. An image is done when its target has the probability
    `confidence` and the other classes changed by at most `tolerance` in the mean, both calibrated.
    Within a candidate, guidance ends half way from that confidence to 1.
    """

    former_names: ClassVar[Mapping[str, str]] = {
        "start": "strength",
        "steps": "num_inference_steps",
        "scale": "guidance_scale",
        "closeness": "proximity_weight",
        "attempts": "num_candidates",
        "hold": "preserve_weight",
    }

    panel: Count = 8
    """Images in the evaluation's picture, at least 1."""
    count: Count = 48
    """Images that are explained and measured, at least 1."""
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """Noise level to start from, as a share of the timesteps, above 0, at most 1."""
    num_inference_steps: Count = 5
    """Denoising steps from that noise level on, at least 1."""
    guidance_scale: Positive = 1.0
    """Scale of the normalised guidance gradient, above 0."""
    proximity_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """How far each step moves the predicted clean latent towards the source, at least 0."""
    num_candidates: Count = 8
    """Candidates of the search, each with noise of its own, at least 1."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    """Calibrated probability of the target from which on an image is done, above 0 and below 1."""
    tolerance: Fraction = 0.03
    """Largest mean change of the other classes' probabilities in a finished image, 0 to 1."""
    mask_threshold: Fraction = 0.45
    """Share of the largest saliency below which the source is kept, 0 to 1. 0: no mask."""
    relax_mask: bool = True
    """Whether an image that no candidate has flipped gets two more: with half of that threshold,
    and without a mask."""
    preserve_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the loss that preserves the other findings, at least 0."""
    inversion: bool = False
    """Whether the noise level is reached by inversion of the source in place of drawn noise."""
    noise_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawn noise, at least 0."""
    solver: Solver = "ddim"
    """Solver of guided denoising: of first or of second order."""

    def timesteps(self, total: int) -> list[int]:
        """The timesteps of guided denoising, the noisiest first, of `total` timesteps."""
        noisiest = max(0, round(self.strength * total) - 1)
        return descending_timesteps(noisiest, self.num_inference_steps)


class EvaluationSettings(StrictModel):
    """The server's evaluations: their figures, sizes and intervals."""

    every: Count = 8
    """Joint rounds between two evaluations, at least 1. The last round is always evaluated."""
    num_samples: Annotated[int, Field(ge=16)] = 300
    """Generated images for FID and KID, at least 16."""
    sampling_steps: Count = 10
    """Denoising steps of a generated image, at least 1."""
    extractor: Literal["efficientnet-lite0", "inception"] = "efficientnet-lite0"
    """Network whose features FID and KID compare."""
    inception_weights: Path | None = None
    """File with the weights of `extractor=inception`. null: they are downloaded."""
    num_thresholds: Annotated[int, Field(ge=10)] = 4001
    """Thresholds of the pooled AUC, at least 10."""
    num_bootstraps: Annotated[int, Field(ge=2)] = 100
    """Bootstraps over patients for the intervals, at least 2."""
    noise_levels: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.0,)
    """Noise levels, as shares of the timesteps, at which latents are classified; the logits are
    averaged over them. 0 is the clean latent."""
    model: Path | None = None
    """With `task=evaluation`, the folder at the server of the model to evaluate."""
    against: Path | None = None
    """With `task=evaluation`, the folder of a second model to compare with. None: no comparison."""
    digests: tuple[str, ...] = ()
    """With `task=evaluation`, the SHA-256 of each model that the server may send, as
    `fed-mediffusion evaluate` writes it. A site refuses any other model."""
    patients: Literal["test", "all"] = "test"
    """With `task=evaluation`, a site's patients: of its test split, on which no run trains, or all.
    """
    counterfactual: CounterfactualSettings = CounterfactualSettings()
    """Guided counterfactuals."""
