"""From latents to logits, blind to how an image was held where that is asked, to probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.diffusion.process import add_noise
from mediffusion_core.models.unet import JointUNet

BATCH = 128


@dataclass(frozen=True)
class ClassifierView:
    """At which noise level a classifier looks at a latent, and through which noise.

    All latents are seen through the same noise, so that what is said of an image does not depend on
    those that it is given with.
    """

    timestep: int
    alpha_bar: Tensor
    """ᾱ_t, a scalar."""
    noise: Tensor
    """(c, h, w)."""

    def through(self, latents: Tensor) -> Tensor:
        """The latents (B, c, h, w) at this noise level; at the first, taken as clean, unchanged."""
        if not self.timestep:
            return latents
        noise = self.noise.to(latents.device)
        return add_noise(latents, noise, self.alpha_bar.to(latents.device).expand(len(latents)))


CLEAN = (ClassifierView(0, torch.ones(()), torch.zeros(())),)
"""At the latent as it is, and nowhere else."""


def looks(
    fractions: Sequence[float],
    alphas_cumprod: Tensor,
    latent_shape: tuple[int, int, int],
    seed: int,
) -> list[ClassifierView]:
    """One look for each noise level, given as fractions of T, through noise drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)
    last = len(alphas_cumprod) - 1
    timesteps = [round(fraction * last) for fraction in fractions]
    return [
        ClassifierView(t, alphas_cumprod[t], torch.randn(latent_shape, generator=generator))
        for t in timesteps
    ]


@torch.no_grad()
def classify_latents(
    joint: JointUNet,
    latents: Tensor,
    *,
    orientation_free: bool,
    at: Sequence[ClassifierView] = CLEAN,
) -> Tensor:
    """Logits of clean latents, in batches, averaged over the looks.

    Args:
        joint: In evaluation mode.
        latents: (N, c, s, s), on any device.
        orientation_free: Average over the eight symmetries of the square. A classifier that no
            turn and no mirror can sway is the mean of its values over the group (group averaging,
            arXiv 2110.03336); for a convolutional encoder a turned latent is nearly the latent
            of the turned image.
        at: Noise levels, at least one. Averaging over noised copies is randomized smoothing
            (arXiv 1902.02918), here with a classifier that knows how noisy what it sees is.

    Returns:
        (N, classes), on the CPU.
    """
    device = next(joint.parameters()).device
    parts = []
    for part in latents.split(BATCH):
        views = list(symmetries(part)) if orientation_free else [part]
        logits = [
            joint.classify(
                look.through(view.float().to(device)),
                torch.full((len(view),), look.timestep, device=device),
            )
            for view in views
            for look in at
        ]
        parts.append(torch.stack(logits).mean(dim=0).cpu())
    return torch.cat(parts)


def symmetries(latents: Tensor) -> Iterator[Tensor]:
    """The eight ways to hold square images or latents (B, C, S, S): turned, and mirrored too."""
    for quarter in range(4):
        turned = latents.rot90(quarter, (2, 3))
        yield turned
        yield turned.flip(3)
