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
    """Guided counterfactuals: noise level, guidance, search, and what is preserved.

    `strength` is the noise level to start from, as a fraction of T, `num_inference_steps` the
    denoising steps of the `solver`, and `guidance_scale` the scale of the normalised gradient. The
    noise level is reached by `inversion` of the source, or else by drawn noise, which the search
    varies from `noise_seed` on.

    The search makes up to `num_candidates` candidates. With inversion strength and scale rise to
    their values over the candidates. An image is done when its target has the probability
    `confidence` and the other classes changed by at most `tolerance` in the mean, both calibrated.
    Within a candidate, guidance ends half way from that confidence to 1.

    Where the saliency is below `mask_threshold` of its largest value the source is kept;
    `relax_mask` lowers the threshold for images that no candidate has flipped. `preserve_weight`
    weights the loss that preserves the other findings, and `proximity_weight` moves every predicted
    clean latent towards the source.
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
    count: Count = 48
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    num_inference_steps: Count = 5
    guidance_scale: Positive = 1.0
    proximity_weight: Annotated[float, Field(ge=0.0)] = 0.0
    num_candidates: Count = 8
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    tolerance: Fraction = 0.03
    mask_threshold: Fraction = 0.45
    relax_mask: bool = True
    preserve_weight: Annotated[float, Field(ge=0.0)] = 1.0
    inversion: bool = False
    noise_seed: Annotated[int, Field(ge=0)] = 0
    solver: Solver = "ddim"

    def timesteps(self, total: int) -> list[int]:
        """The timesteps of guided denoising, the noisiest first, of `total` timesteps."""
        noisiest = max(0, round(self.strength * total) - 1)
        return descending_timesteps(noisiest, self.num_inference_steps)


class EvaluationSettings(StrictModel):
    """What the server evaluates, and how often (in joint rounds; the last round always).

    `noise_levels` are the noise levels, as fractions of T, at which latents are classified; the
    logits are averaged over them. 0 is the clean latent.
    """

    every: Count = 8
    num_samples: Annotated[int, Field(ge=16)] = 300
    sampling_steps: Count = 30
    extractor: Literal["efficientnet-lite0", "inception"] = "efficientnet-lite0"
    inception_weights: Path | None = None
    num_thresholds: Annotated[int, Field(ge=10)] = 4001
    num_bootstraps: Annotated[int, Field(ge=2)] = 100
    noise_levels: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.0,)
    counterfactual: CounterfactualSettings = CounterfactualSettings()
