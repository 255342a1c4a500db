"""From latents to logits, blind to how an image was held where that is asked, to probabilities."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mediffusion_core.model.joint_unet import JointUNet

BATCH = 128


@torch.no_grad()
def classify_latents(joint: JointUNet, latents: Tensor, *, orientation_free: bool) -> Tensor:
    """Logits of clean latents, in batches.

    Args:
        joint: In evaluation mode.
        latents: (N, c, s, s), on any device.
        orientation_free: Average over the eight symmetries of the square. A classifier that no
            turn and no mirror can sway is the mean of its values over the group (group averaging,
            arXiv 2110.03336); for a convolutional encoder a turned latent is nearly the latent
            of the turned image.

    Returns:
        (N, classes), on the CPU.
    """
    device = next(joint.parameters()).device
    parts = []
    for part in latents.split(BATCH):
        views = list(symmetries(part)) if orientation_free else [part]
        logits = [joint.classify(view.float().to(device)) for view in views]
        parts.append(torch.stack(logits).mean(dim=0).cpu())
    return torch.cat(parts)


def class_probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Probabilities (N, classes) of logits: independent if multi-label, else they sum to 1."""
    return logits.sigmoid() if multi_label else logits.softmax(dim=1)


def symmetries(latents: Tensor) -> Iterator[Tensor]:
    """The eight ways to hold square images or latents (B, C, S, S): turned, and mirrored too."""
    for quarter in range(4):
        turned = latents.rot90(quarter, (2, 3))
        yield turned
        yield turned.flip(3)
