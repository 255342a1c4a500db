"""What the server judges a model by."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel

Solver = Literal["ddim", "dpmsolver++"]
"""How a guided step is taken: to first order, or to second with the step before."""


class CounterfactualSettings(StrictModel):
    """Guided counterfactuals: how far the image is noised and how hard the head pulls.

    `start` is a fraction of the noise process and `scale` how hard the head pulls. The noise level
    is reached by `inversion` of the source, where the search reaches both in `attempts` steps, or
    else by drawn noise, another in each attempt from `noise_seed` on. The search leaves an image
    where its target has `confidence` and the others have moved by no more than `tolerance`, both in
    calibrated probabilities; it is pulled until half way from that confidence to certainty. What is
    less salient than `mask_threshold` of the largest is kept, which `relax_mask` loosens for images
    that no attempt has flipped. The other findings are held with weight `hold`, and `closeness`
    moves towards the source at every step; `solver` takes the steps.
    """

    panel: Count = 8
    count: Count = 48
    start: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    steps: Count = 5
    scale: Positive = 1.0
    closeness: Annotated[float, Field(ge=0.0)] = 0.0
    attempts: Count = 8
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    tolerance: Fraction = 0.03
    mask_threshold: Fraction = 0.45
    relax_mask: bool = True
    hold: Annotated[float, Field(ge=0.0)] = 1.0
    inversion: bool = False
    noise_seed: Annotated[int, Field(ge=0)] = 0
    solver: Solver = "ddim"

    def timesteps(self, total: int) -> list[int]:
        """The levels of the way back, the noisiest first: the last of the first `start` of all."""
        return descending_timesteps(max(0, round(self.start * total) - 1), self.steps)


class EvaluationSettings(StrictModel):
    """What the server judges, and how often (in joint rounds; the last round always).

    `noise_levels` are fractions of the noise process at which the classifier looks at a latent, its
    logits being averaged; 0 is the clean latent.
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
