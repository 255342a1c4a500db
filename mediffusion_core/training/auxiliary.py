"""Inputs of the joint stage beyond the trained weights, which some settings need."""

from collections.abc import Sequence
from dataclasses import dataclass

from mediffusion_core.models import JointUNet
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.scaffold import ControlVariate


@dataclass(frozen=True)
class Auxiliary:
    """Inputs of a round of the joint stage beside the weights, as far as the server sends them."""

    label_counts: LabelCounts | None = None
    """Of all sites: for logit adjustment and adaptive thresholds."""
    teacher: JointUNet | None = None
    """Predicts the pseudo-labels of unlabelled images; without one the trained model does."""
    controls: Sequence[ControlVariate] = ()
    """SCAFFOLD's, of parts of the model."""
