"""The whitening of a public encoder's features, from the sums that each site sends."""

from collections.abc import Sequence

from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.protocol import COUNTS
from mediffusion_core.models.class_means import ClassMeans, ClassSums
from mediffusion_core.models.whitening import FeatureSums, Whitening
from mediffusion_core.settings import AlignmentSettings
from server.messages import Reply


def whitening(
    replies: Sequence[Reply], alignment: AlignmentSettings, multi_label: bool
) -> dict[str, Tensor]:
    """The linear map to the aligned directions, over all sites' images.

    With distillation, a classifier of the directions as well.

    Args:
        replies: To the feature census, at least one.
        alignment: Its number of directions, and its shrinkage.
        multi_label: Whether the classes are independent.

    Raises:
        UserError: if all sites together have fewer than two images, or their sums are of none; with
            distillation, if no image has a label.
    """
    parts = [reply.components[COUNTS] for reply in replies]
    sums = FeatureSums.pooled([FeatureSums.of_arrays(part) for part in parts])
    if sums.count < 2:
        raise UserError("training.joint.alignment needs at least two training images")
    try:
        whitened = Whitening.of(sums, alignment.directions, alignment.shrinkage)
    except (ValueError, RuntimeError) as error:  # that of eigh is a RuntimeError
        raise UserError(f"training.joint.alignment: {error}") from None
    if not alignment.distillation_weight:
        return whitened.arrays()
    classes = ClassSums.pooled([ClassSums.of_arrays(part) for part in parts])
    if not float(classes.known.sum()):
        raise UserError(
            "training.joint.alignment.distillation_weight: no site has a labelled image"
        )
    classifier = ClassMeans.of(classes, sums, whitened, multi_label)
    return whitened.arrays() | classifier.arrays()
