"""What has weights: the autoencoder and the joint UNet."""

from mediffusion_core.model.autoencoder import (
    LatentCodec,
    build_autoencoder,
    channel_sums,
    scale_from_sums,
    untrained_codec,
)
from mediffusion_core.model.joint_unet import JointUNet, build_unet, pooled_width

__all__ = [
    "JointUNet",
    "LatentCodec",
    "build_autoencoder",
    "build_unet",
    "channel_sums",
    "pooled_width",
    "scale_from_sums",
    "untrained_codec",
]
