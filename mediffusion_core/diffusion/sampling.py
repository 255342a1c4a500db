"""Drawing latents from the joint UNet."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.diffusion.noise_process import ddim_step, descending_timesteps
from mediffusion_core.model import JointUNet


@torch.no_grad()
def sample_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    noise: Tensor,
    steps: int,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Turns noise into latents by deterministic DDIM (arXiv 2010.02502, eq. 12 with σ = 0).

    Args:
        model: The joint UNet.
        alphas_cumprod: ᾱ (T,).
        noise: (B, c, h, w), standard normal.
        steps: How many denoising steps.
        on_step: Called with (steps done, steps in all).

    Returns:
        Scaled latents (B, c, h, w).
    """
    timesteps = descending_timesteps(len(alphas_cumprod) - 1, steps)
    latents = noise
    for done, (now, after) in enumerate(zip(timesteps, [*timesteps[1:], -1], strict=True), 1):
        at = torch.full((len(latents),), now, device=latents.device)
        noise_pred = model.denoise(latents, at).float()
        previous = alphas_cumprod[after] if after >= 0 else alphas_cumprod.new_ones(())
        latents = ddim_step(latents, noise_pred, alphas_cumprod[now], previous)
        if on_step:
            on_step(done, len(timesteps))
    return latents
