"""The whitening of a public encoder's features, from the sums that each site sends."""

from collections.abc import Sequence

from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.protocol import COUNTS
from mediffusion_core.models.whitening import FeatureSums, Whitening
from mediffusion_core.settings import AlignmentSettings
from server.messages import Reply


def whitening(replies: Sequence[Reply], alignment: AlignmentSettings) -> dict[str, Tensor]:
    """The linear map to the aligned directions, over all sites' images.

    Args:
        replies: To the feature census, at least one.
        alignment: Its number of directions, and its shrinkage.

    Raises:
        UserError: if all sites together have fewer than two images, or their sums are of none.
    """
    parts = [FeatureSums.of_arrays(reply.components[COUNTS]) for reply in replies]
    sums = FeatureSums.pooled(parts)
    if sums.count < 2:
        raise UserError("training.joint.alignment needs at least two training images")
    try:
        return Whitening.of(sums, alignment.directions, alignment.shrinkage).arrays()
    except (ValueError, RuntimeError) as error:  # that of eigh is a RuntimeError
        raise UserError(f"training.joint.alignment: {error}") from None
