"""Denoising from the source's noise level under the gradient of a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.inversion import SourceLatents
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import CLEAN, DiffusionProcess
from mediffusion_core.diffusion.samplers import denoise, solver
from mediffusion_core.settings import CounterfactualSettings


class Guide(Protocol):
    """A denoiser, and a classifier of noisy latents."""

    @property
    def process(self) -> DiffusionProcess:
        """The noise process, on the latents' device."""

    def noise_pred(self, latents: Tensor, timestep: int) -> Tensor:
        """ε̂ (B, c, h, w) of z_t (B, c, h, w)."""

    def noise_pred_and_logits(self, latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """ε̂ and calibrated logits (B, C) of z_t (B, c, h, w), differentiable."""


@dataclass(frozen=True)
class Guidance:
    """The target of the guidance, and the limits on the change."""

    target: Target
    source_logits: Mapping[int, Tensor]
    """Logits (B, C) at which the other findings are preserved, by timestep; at the timesteps that
    are not there nothing is guided."""
    mask: Tensor
    """Where the latents may differ from the source, (B, 1, h, w) or (1, 1, h, w) in [0, 1]."""
    settings: CounterfactualSettings


def guided_denoising(model: Guide, source: SourceLatents, guidance: Guidance) -> Tensor:
    """From the source's noisiest level to the clean latents (B, c, h, w) of a counterfactual.

    Outside the mask each step ends on the source's latents at that level (arXiv 2201.09865, eq. 8).
    """
    process, levels = model.process, list(source)
    solve = solver(guidance.settings.solver, process, levels[:-1])

    def predict(latents: Tensor, timestep: int) -> Tensor:
        if timestep in guidance.source_logits:
            noise_pred, gradient = guidance_gradient(model, latents, timestep, guidance)
        else:
            with torch.no_grad():
                noise_pred = model.noise_pred(latents, timestep)
            gradient = torch.zeros_like(latents)
        scale = guidance.settings.guidance_scale * (1 - process.alpha_bar(timestep)).sqrt()
        clean = process.predict_clean(latents, noise_pred + scale * gradient, timestep)
        clean = clean + guidance.settings.proximity_weight * (source[CLEAN] - clean)
        return process.noise_between(latents, clean, timestep)

    def step(latents: Tensor, noise_pred: Tensor, now: int, after: int) -> Tensor:
        reached = solve(latents, noise_pred, now, after)
        return guidance.mask * reached + (1 - guidance.mask) * source[after]

    return denoise(predict, step, source[levels[0]], levels)


def guidance_gradient(
    model: Guide, latents: Tensor, timestep: int, guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """ε̂ of z_t (B, c, h, w), and the normalised gradient of the target's loss there."""
    target, settings = guidance.target, guidance.settings
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        noise_pred, logits = model.noise_pred_and_logits(inputs, timestep)
        loss = target.loss(logits, guidance.source_logits[timestep], settings.preserve_weight).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
    confidence = target.confidence(target.probabilities(logits.detach()))
    unsure = confidence < (1 + settings.confidence) / 2
    return noise_pred.detach(), normalised_gradient(gradient, unsure, guidance.mask)


def normalised_gradient(gradient: Tensor, unsure: Tensor, mask: Tensor) -> Tensor:
    """√d g/‖g‖ within the mask, so that a guidance scale means the same for every image.

    Args:
        gradient: g (B, c, h, w), of the target's loss.
        unsure: Which images still need guidance, (B,); the others get none.
        mask: (B, 1, h, w) or (1, 1, h, w) in [0, 1]; d is the number of values within.

    Returns:
        (B, c, h, w), with an RMS of 1 within the mask.
    """
    gradient = gradient * mask
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
    size = mask.flatten(1).sum(dim=1).reshape(-1, 1, 1, 1) * gradient.shape[1]
    return torch.where(unsure.reshape(-1, 1, 1, 1), gradient / norm * size.sqrt(), 0.0)
