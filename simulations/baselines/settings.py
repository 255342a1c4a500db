"""The settings of a baseline, beside those of the run that it is compared with."""

from typing import Annotated, Literal

from pydantic import Field

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel
from mediffusion_core.settings.training import PublicEncoderName

NonNegative = Annotated[float, Field(ge=0.0)]
Norm = Literal["batch", "group"]


class ConsistencySettings(StrictModel):
    """FixMatch (arXiv 2001.07685).

    `ratio` is the number of unlabelled images for each labelled one, `threshold` the lowest
    probability of a pseudo-label, `weight` the weight of the unlabelled loss.
    """

    ratio: Count = 2
    threshold: Fraction = 0.95
    weight: Positive = 1.0


class BaselineSettings(StrictModel):
    """A ResNet-18 on pixels; with `consistency` it also trains on unlabelled images.

    `local_epochs` counts passes over a site's labelled images in one round. A `stem_stride` of 2
    makes a step four times cheaper. `norm="batch"` normalises by the statistics of a site's batch,
    `norm="group"` by those of each image. Validation runs `every` so many rounds.
    """

    stem_stride: Literal[1, 2] = 2
    norm: Norm = "batch"
    rounds: Count = 160
    local_epochs: Positive = 0.2
    batch_size: Count = 32
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    ema_decay: Fraction = 0.95
    every: Count = 40
    consistency: ConsistencySettings | None = None


class LinearSettings(StrictModel):
    """Logistic regression on the whitened `features` of a public encoder."""

    features: PublicEncoderName
