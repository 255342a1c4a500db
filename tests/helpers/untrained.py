"""A model whose networks are as they were drawn, the same for the same settings."""

from collections.abc import Sequence

import torch

from mediffusion_core.inference.joint_model import TrainedModel, build_joint
from mediffusion_core.models import untrained_codec
from mediffusion_core.settings import Settings


def untrained_model(
    settings: Settings, classes: Sequence[str], multi_label: bool = True
) -> TrainedModel:
    """Codec and joint UNet as the settings describe them, drawn from seed 0."""
    torch.manual_seed(0)
    codec = untrained_codec(settings.model.autoencoder, settings.data.channels)
    joint = build_joint(settings, len(classes))
    return TrainedModel(settings, tuple(classes), multi_label, codec, joint)
