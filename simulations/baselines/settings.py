"""The settings of a baseline, beside those of the run that it is compared with."""

from typing import Annotated, Literal, Self

from pydantic import Field

from mediffusion_core.settings.base import Count, Fraction, NonNegative, Positive, StrictModel
from mediffusion_core.settings.training import PublicEncoderName
from simulations.baselines.semi_supervised.settings import ConsistencySettings, SemiSupervised

Norm = Literal["batch", "group"]


class TrainedSettings(StrictModel):
    """A classifier of images; with `consistency` it also trains on unlabelled images.

    `local_epochs` counts passes over a site's labelled images in one round, and where it has none,
    over its unlabelled ones. Validation runs `every` so many rounds.
    """

    rounds: Count = 160
    local_epochs: Positive = 0.2
    batch_size: Count = 32
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    ema_decay: Fraction = 0.95
    every: Count = 40
    consistency: SemiSupervised | None = None


class BaselineSettings(TrainedSettings):
    """A ResNet-18 on the images of the joint network.

    A `stem_stride` of 2 makes a step four times cheaper. `norm="batch"` normalises by the
    statistics of a site's batch, `norm="group"` by those of each image.
    """

    stem_stride: Literal[1, 2] = 2
    norm: Norm = "batch"


class FineTunedSettings(TrainedSettings):
    """EfficientNet-Lite with the weights of ImageNet, on the originals at `image_size` pixels.

    `local_epochs` is that at the main labelled fraction of a study.
    """

    pretrained: Literal["efficientnet-lite1"] = "efficientnet-lite1"
    image_size: Count = 128
    rounds: Count = 40
    local_epochs: Positive = 0.35
    batch_size: Count = 16
    learning_rate: Positive = 5e-4
    every: Count = 20
    consistency: ConsistencySettings | None = None

    def repeated(self, factor: float) -> Self:
        """The settings with so many times as many passes over the labels in a round."""
        return self.model_copy(update={"local_epochs": factor * self.local_epochs})


class LinearSettings(StrictModel):
    """Logistic regression on the whitened `features` of a public encoder."""

    features: PublicEncoderName


Baseline = BaselineSettings | FineTunedSettings | LinearSettings
