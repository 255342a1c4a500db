"""Settings of the baselines' losses of unlabelled images."""

import math
from typing import Annotated, Literal

from pydantic import Field

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel


class ConsistencySettings(StrictModel):
    """FixMatch (arXiv 2001.07685).

    `ratio` is the number of unlabelled images for each labelled one, `threshold` the lowest
    probability of a pseudo-label, `weight` the weight of the unlabelled loss. Adaptive thresholds
    (arXiv 2205.07246) take the place of `threshold`. `alignment` scales probabilities to the
    distribution of the labels (arXiv 1911.09785).
    """

    kind: Literal["fixmatch"] = "fixmatch"
    ratio: Count = 2
    threshold: Fraction = 0.95
    weight: Positive = 1.0
    thresholds: Literal["fixed", "adaptive"] = "fixed"
    alignment: bool = False


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


class FedIRMSettings(TeacherSettings):
    """A mean teacher, and relations of classes (FedIRM, arXiv 2106.08600).

    An image is reliable where the mean probabilities of `passes` with `dropout` have an entropy of
    at most `max_entropy`. `temperature` softens the relations. The authors' code weights both
    losses by 15, and trains a tenth of the rounds on labels alone.
    """

    kind: Literal["fedirm"] = "fedirm"
    weight: Positive = 15.0
    warm_up: Fraction = 0.1
    dropout: Fraction = 0.2
    passes: Count = 8
    max_entropy: Positive = math.log(2)
    temperature: Positive = 2.0


class RSCFedSettings(TeacherSettings):
    """A mean teacher, and random sampling consensus (RSCFed, arXiv 2203.13993).

    Each of `subsets` means is of a random share `subset_share` of the sites. Labelled sites have
    `labelled_weight` times their weight there. `distance_scale` is β, for distances in units of
    their mean over a subset: those of a round of AdamW have another length than SGD's.
    """

    kind: Literal["rscfed"] = "rscfed"
    weight: Positive = 0.02
    warm_up: Fraction = 0.1
    sharpening: Positive = 0.5
    subsets: Count = 3
    subset_share: Fraction = 0.5
    labelled_weight: Positive = 6.0
    distance_scale: Positive = 1.0


class CBAFedSettings(StrictModel):
    """Class balanced adaptive pseudo-labels (CBAFed, CVPR 2023, pages 16292 to 16301).

    The threshold of a class is its share of all labels and pseudo-labels plus `base_threshold`,
    less the shares' standard deviation, at most `max_threshold`. An image below it has its second
    likeliest class as its label where that one's share is below `rare_share`. Every
    `residual_every` rounds the global weights are averaged with those of the time before. Labelled
    sites have `labelled_weight` times their weight.
    """

    kind: Literal["cbafed"] = "cbafed"
    ratio: Count = 1
    weight: Positive = 1.0
    warm_up: Fraction = 0.25
    base_threshold: Fraction = 0.84
    max_threshold: Fraction = 0.9
    rare_share: Fraction = 0.03
    residual_every: Count = 5
    labelled_weight: Positive = 10.0


SemiSupervised = Annotated[
    ConsistencySettings | MeanTeacherSettings | FedIRMSettings | RSCFedSettings | CBAFedSettings,
    Field(discriminator="kind"),
]
