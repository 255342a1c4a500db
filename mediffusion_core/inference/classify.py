"""From latents to logits, averaged over noise levels and over orientations where asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.augmentation import turns_and_flips
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models.unet import JointUNet
from mediffusion_core.settings import Settings

BATCH = 128


def logits_of(settings: Settings, joint: JointUNet, latents: Tensor) -> Tensor:
    """Logits (N, classes) of clean latents (N, c, h, w), on the CPU.

    Averaged over the noise levels of `evaluation.noise_levels`, with noise that the run's seed
    draws, and over all orientations where a turned image is as likely as the original.
    """
    views = classifier_views(
        settings.evaluation.noise_levels,
        DiffusionProcess.of(settings.diffusion),
        settings.latent_shape,
        derive_seed(settings.seed, "noise levels"),
    )
    free = turns_and_flips(settings.data.augmentation)
    return classify_latents(joint, latents, orientation_free=free, views=views)


@dataclass(frozen=True)
class ClassifierView:
    """A noise level at which latents are classified, and the noise that is added.

    All latents get the same noise, so that an image's logits do not depend on the other images of
    its batch.
    """

    timestep: int
    process: DiffusionProcess
    noise: Tensor
    """(c, h, w)."""

    def noised(self, latents: Tensor) -> Tensor:
        """The latents (B, c, h, w) at this noise level; unchanged at timestep 0."""
        if not self.timestep:
            return latents
        process = self.process.to(latents.device)
        return process.add_noise(latents, self.noise.to(latents.device), self.timestep)


def classifier_views(
    fractions: Sequence[float],
    process: DiffusionProcess,
    latent_shape: tuple[int, int, int],
    seed: int,
) -> list[ClassifierView]:
    """One view for each noise level, given as fractions of T, with noise drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)
    timesteps = [round(fraction * (len(process) - 1)) for fraction in fractions]
    return [
        ClassifierView(t, process, torch.randn(latent_shape, generator=generator))
        for t in timesteps
    ]


@torch.no_grad()
def classify_latents(
    joint: JointUNet,
    latents: Tensor,
    *,
    orientation_free: bool,
    views: Sequence[ClassifierView] = (),
) -> Tensor:
    """Logits of clean latents, in batches, averaged over the views.

    Args:
        joint: In evaluation mode.
        latents: (N, c, s, s), on any device.
        orientation_free: Average over the eight symmetries of the square, which makes the logits
            invariant under turns and mirrors (group averaging, arXiv 2110.03336); for a
            convolutional encoder a turned latent is nearly the latent of the turned image.
        views: Noise levels; the clean latents where there are none. Averaging over noised copies is
            randomized smoothing (arXiv 1902.02918), here with a classifier that is given the noise
            level.

    Returns:
        (N, classes), on the CPU.
    """
    device = next(joint.parameters()).device
    parts = []
    for part in latents.split(BATCH):
        orientations = list(symmetries(part)) if orientation_free else [part]
        logits = [
            joint.classify(*view)
            for turned in orientations
            for view in _viewed(turned.float().to(device), views)
        ]
        parts.append(torch.stack(logits).mean(dim=0).cpu())
    return torch.cat(parts)


def _viewed(
    latents: Tensor, views: Sequence[ClassifierView]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Latents (B, c, h, w) and timesteps (B,) of each view; the latents alone without views."""
    if not views:
        yield latents, None
    for view in views:
        timesteps = torch.full((len(latents),), view.timestep, device=latents.device)
        yield view.noised(latents), timesteps


def symmetries(latents: Tensor) -> Iterator[Tensor]:
    """The eight ways to hold square images or latents (B, C, S, S): turned, and mirrored too."""
    for quarter in range(4):
        turned = latents.rot90(quarter, (2, 3))
        yield turned
        yield turned.flip(3)
