"""The source image at the noise levels of a counterfactual, and what the head predicts there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import CLEAN, DiffusionProcess
from mediffusion_core.diffusion.samplers import ddim_step, trajectory
from mediffusion_core.settings import CounterfactualSettings

SourceLatents = dict[int, Tensor]
"""The source's latents (B, c, h, w) by noise level, the noisiest first, the last one `CLEAN`."""


def source_latents(
    model: GuidedModel, latents: Tensor, settings: CounterfactualSettings
) -> SourceLatents:
    """The source at every noise level that the settings visit: inverted, or noised.

    Args:
        model: The denoiser.
        latents: Clean latents of the source (B, c, h, w).
        settings: Noise levels, and how to reach them.
    """
    timesteps = settings.timesteps(len(model.process))
    if settings.inversion:
        return inverted_latents(model, latents, timesteps)
    return noised_latents(model.process, latents, timesteps, settings.noise_seed)


@torch.no_grad()
def inverted_latents(model: GuidedModel, latents: Tensor, timesteps: list[int]) -> SourceLatents:
    """DDIM run backwards, from the clean latents up (arXiv 2010.02502, section 4.3).

    Without guidance, denoising along the same levels leads back to the source.
    """
    levels = [CLEAN, *reversed(timesteps)]

    def predict(current: Tensor, level: int) -> Tensor:
        return model.noise_pred(current, max(level, 0))

    step = partial(ddim_step, model.process)
    reached = list(trajectory(predict, step, latents, levels))
    return {**dict(zip(timesteps, reversed(reached), strict=True)), CLEAN: latents}


def noised_latents(
    process: DiffusionProcess, latents: Tensor, timesteps: list[int], seed: int
) -> SourceLatents:
    """The source with the same drawn noise at every level and for every image."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape[1:], generator=generator).to(latents.device)
    noise = noise.expand_as(latents)
    return {**{t: process.add_noise(latents, noise, t) for t in timesteps}, CLEAN: latents}


@dataclass(frozen=True)
class SourcePrediction:
    """The head's logits of the source at the timesteps at which it guides, and their saliency."""

    logits: Mapping[int, Tensor]
    """(B, C) by timestep."""
    saliency: Tensor
    """Which positions of the source change them, (B, 1, h, w)."""

    def rows(self, rows: Tensor) -> Self:
        """That of the images at the positions (n,)."""
        logits = {timestep: one[rows] for timestep, one in self.logits.items()}
        return replace(self, logits=logits, saliency=self.saliency[rows])


def predict_source(model: GuidedModel, source: SourceLatents, target: Target) -> SourcePrediction:
    """The head's logits of the inverted source, and their saliency.

    The saliency is the gradient of the target's loss by the latent: its norm over channels, divided
    by its mean over the image at each level, and averaged over the levels. In a noised source both
    would depend on the drawn noise.
    """
    logits, total = {}, torch.zeros(())
    for timestep in model.guided([level for level in source if level != CLEAN]):
        with torch.enable_grad():
            inputs = source[timestep].detach().requires_grad_(True)
            found = model.classify(inputs, timestep)
            (gradient,) = torch.autograd.grad(target.loss(found, None).sum(), inputs)
        length = gradient.norm(dim=1, keepdim=True)  # (B, 1, h, w)
        mean = length.mean(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        logits[timestep] = found.detach()
        total = total + length / mean
    return SourcePrediction(logits, total / len(logits))


def change_mask(saliency: Tensor, threshold: float, editable: Tensor | None = None) -> Tensor:
    """Where a counterfactual may differ from its source, 1, and where it must not, 0.

    The cells whose saliency, smoothed by a binomial kernel of 3 x 3, is at least `threshold` of
    the image's largest: few for a small finding, many for a large one. The same kernel softens
    their margin. Only editable cells count, and no other cell is in the mask.

    Args:
        saliency: (B, 1, h, w).
        threshold: From 0, where every editable cell may change, to 1.
        editable: Cells that may change, (B, 1, h, w) in {0, 1}; all where None.

    Returns:
        (B, 1, h, w) in [0, 1].
    """
    if editable is None:
        editable = torch.ones_like(saliency)
    if threshold <= 0:
        return editable
    smooth = _smoothed(saliency * editable)
    limit = threshold * smooth.amax(dim=(2, 3), keepdim=True)
    return editable * _smoothed((smooth >= limit).to(saliency.dtype))


def _smoothed(values: Tensor) -> Tensor:
    row = values.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row)[None, None]
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel)
