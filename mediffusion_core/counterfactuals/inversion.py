"""The source image at every noise level of a counterfactual's way back."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import add_noise, ddim_step


@dataclass(frozen=True)
class SourcePath:
    """What the source looks like at each of the K noise levels, the noisiest first."""

    timesteps: list[int]
    latents: list[Tensor]
    """K + 1 times (B, c, h, w); the last is the clean source."""


@torch.no_grad()
def inverted_path(model: GuidedModel, latents: Tensor, timesteps: list[int]) -> SourcePath:
    """DDIM run backwards, from the clean latents up (arXiv 2010.02502, section 4.3).

    Without guidance the way back along the same levels leads to the source.
    """
    found, current, levels = [latents], latents, model.alphas_cumprod
    for now, after in pairwise([0, *reversed(timesteps)]):
        noise_pred = model.noise_pred(current, now)
        if now == 0:
            current = add_noise(latents, noise_pred, levels[after])
        else:
            current = ddim_step(current, noise_pred, levels[now], levels[after])
        found.append(current)
    return SourcePath(timesteps, found[::-1])


def noised_path(
    alphas_cumprod: Tensor, latents: Tensor, timesteps: list[int], seed: int
) -> SourcePath:
    """The source through one drawn noise at every level, the same noise for every image."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape[1:], generator=generator).to(latents.device)
    noise = noise.expand_as(latents)
    noised = [add_noise(latents, noise, alphas_cumprod[t]) for t in timesteps]
    return SourcePath(timesteps, [*noised, latents])


def logits_along(
    model: GuidedModel, path: SourcePath, target: Target
) -> tuple[dict[int, Tensor], Tensor]:
    """What the head says of the source at each level that it knows, and where it looks.

    Where it looks for the target is the gradient of the target's loss by the latent, its length
    over channels normalised to a mean of 1 an image at each level and averaged over the levels.

    Returns:
        Logits (B, C) by timestep, and the saliency (B, 1, h, w).
    """
    logits, total = {}, torch.zeros(())
    for now, latents in _known(model, path):
        with torch.enable_grad():
            inputs = latents.detach().requires_grad_(True)
            seen = model.classify(inputs, now)
            (gradient,) = torch.autograd.grad(target.loss(seen, None).sum(), inputs)
        length = gradient.norm(dim=1, keepdim=True)  # (B, 1, h, w)
        mean = length.mean(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        logits[now] = seen.detach()
        total = total + length / mean
    return logits, total / len(logits)


@torch.no_grad()
def seen_along(model: GuidedModel, path: SourcePath) -> dict[int, Tensor]:
    """What the head says of the source at each level that it knows: logits (B, C) by timestep."""
    return {now: model.classify(latents, now) for now, latents in _known(model, path)}


def _known(model: GuidedModel, path: SourcePath) -> list[tuple[int, Tensor]]:
    """The path at the levels at which the head is asked, with their timesteps."""
    asked = set(model.asked(path.timesteps))
    levels = zip(path.timesteps, path.latents, strict=False)
    return [(now, latents) for now, latents in levels if now in asked]


def change_mask(saliency: Tensor, threshold: float) -> Tensor:
    """Where a counterfactual may differ from its source, 1, and where it must not, 0.

    The cells whose saliency, smoothed by a binomial kernel of 3 x 3, is at least `threshold` of
    the image's largest: few for a small finding, many for a large one. The same kernel softens
    their margin.

    Args:
        saliency: (B, 1, h, w).
        threshold: From 0, where everything may change, to 1.

    Returns:
        (B, 1, h, w) in [0, 1].
    """
    if threshold <= 0:
        return torch.ones_like(saliency)
    smooth = _smoothed(saliency)
    limit = threshold * smooth.amax(dim=(2, 3), keepdim=True)
    return _smoothed((smooth >= limit).to(saliency.dtype))


def _smoothed(values: Tensor) -> Tensor:
    row = values.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row)[None, None]
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel)
