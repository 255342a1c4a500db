"""What has weights: the autoencoder and the joint UNet."""

from mediffusion_core.model.autoencoder import (
    Autoencoder,
    LatentCodec,
    channel_sums,
    scale_from_sums,
    untrained_codec,
)
from mediffusion_core.model.classifying import class_probabilities, classify_latents, looks
from mediffusion_core.model.joint_unet import JointUNet, build_unet, pooled_width

__all__ = [
    "Autoencoder",
    "JointUNet",
    "LatentCodec",
    "build_unet",
    "channel_sums",
    "class_probabilities",
    "classify_latents",
    "looks",
    "pooled_width",
    "scale_from_sums",
    "untrained_codec",
]
