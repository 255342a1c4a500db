"""Settings of the baselines' losses of unlabelled images."""

from typing import Annotated, Literal

from pydantic import Field

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel


class ConsistencySettings(StrictModel):
    """FixMatch (arXiv 2001.07685).

    `ratio` is the number of unlabelled images for each labelled one, `threshold` the lowest
    probability of a pseudo-label, `weight` the weight of the unlabelled loss.
    """

    kind: Literal["fixmatch"] = "fixmatch"
    ratio: Count = 2
    threshold: Fraction = 0.95
    weight: Positive = 1.0


class TeacherSettings(StrictModel):
    """A moving average of a site's weights, of decay `teacher_decay`, is the site's teacher.

    The first share `warm_up` of the rounds trains on labels alone. The weight of the unlabelled
    loss rises to `weight` until a share `ramp_up` of the rounds. `sharpening` is the temperature
    of the teacher's probabilities; 1 leaves them as they are.
    """

    ratio: Count = 1
    weight: Positive
    warm_up: Fraction = 0.0
    ramp_up: Fraction = 0.15
    teacher_decay: Fraction = 0.99
    sharpening: Positive = 1.0


class MeanTeacherSettings(TeacherSettings):
    """Mean teacher (arXiv 1703.01780).

    Its weight of 100 for the mean over ten classes is 10 for the sum over classes.
    """

    kind: Literal["mean-teacher"] = "mean-teacher"
    weight: Positive = 10.0


SemiSupervised = Annotated[ConsistencySettings | MeanTeacherSettings, Field(discriminator="kind")]
