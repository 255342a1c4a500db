"""The networks: autoencoder, joint UNet and its head."""

from mediffusion_core.models.autoencoder import (
    Autoencoder,
    LatentCodec,
    channel_sums,
    scale_from_sums,
    untrained_codec,
)
from mediffusion_core.models.probabilities import class_probabilities
from mediffusion_core.models.unet import (
    DECODER_HALF,
    JointUNet,
    build_unet,
    encoder_half,
    pooled_width,
)

__all__ = [
    "DECODER_HALF",
    "Autoencoder",
    "JointUNet",
    "LatentCodec",
    "build_unet",
    "channel_sums",
    "class_probabilities",
    "encoder_half",
    "pooled_width",
    "scale_from_sums",
    "untrained_codec",
]
