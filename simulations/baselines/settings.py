"""What one rival is told beside the settings of the run it is held against."""

from typing import Literal

from pydantic import Field

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel

Norm = Literal["batch", "group"]


class ConsistencySettings(StrictModel):
    """FixMatch (arXiv 2001.07685): unlabelled rows a labelled one, threshold and weight."""

    ratio: Count = 2
    threshold: Fraction = 0.95
    weight: Positive = 1.0


class RivalSettings(StrictModel):
    """A ResNet-18 on pixels; with `consistency` also on unlabelled ones.

    `local_epochs` counts passes over a site's labelled images in a round; with a `stem_stride` of 2
    a step costs a quarter. Statistics of a `batch` are those of the site that trains, those of a
    `group` of channels an image's own.
    """

    stem_stride: Literal[1, 2] = 2
    norm: Norm = "batch"
    rounds: Count = 160
    local_epochs: Positive = 0.2
    batch_size: Count = 32
    learning_rate: Positive = 1e-3
    weight_decay: float = Field(0.05, ge=0.0)
    warmup_steps: int = Field(20, ge=0)
    ema_decay: Fraction = 0.95
    every: Count = 40
    consistency: ConsistencySettings | None = None
