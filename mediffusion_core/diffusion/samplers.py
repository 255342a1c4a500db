"""Drawing latents from the joint UNet."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.diffusion.process import ddim_step, noise_from
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import Prediction


@torch.no_grad()
def sample_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    noise: Tensor,
    steps: int,
    prediction: Prediction,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Turns noise into latents by deterministic DDIM (arXiv 2010.02502, eq. 12 with σ = 0).

    Args:
        model: The joint UNet.
        alphas_cumprod: ᾱ (T,).
        noise: (B, c, h, w), standard normal.
        steps: How many denoising steps.
        prediction: What the network predicts.
        on_step: Called with (steps done, steps in all).

    Returns:
        Scaled latents (B, c, h, w).
    """
    timesteps = descending_timesteps(len(alphas_cumprod) - 1, steps)
    latents = noise
    for done, (now, after) in enumerate(zip(timesteps, [*timesteps[1:], -1], strict=True), 1):
        at = torch.full((len(latents),), now, device=latents.device)
        alpha_bar = alphas_cumprod[now]
        noise_pred = noise_from(model.denoise(latents, at).float(), latents, alpha_bar, prediction)
        previous = alphas_cumprod[after] if after >= 0 else alphas_cumprod.new_ones(())
        latents = ddim_step(latents, noise_pred, alpha_bar, previous)
        if on_step:
            on_step(done, len(timesteps))
    return latents
