"""Counterfactuals by a classifier that is no part of the model: what ours are held against."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.diffusion.noise_process import (
    ddim_step,
    descending_timesteps,
    noise_from,
    predict_clean,
)
from mediffusion_core.diffusion.source_path import inverted_path
from mediffusion_core.diffusion.target import Target
from mediffusion_core.model import JointUNet
from mediffusion_core.settings import Prediction


def externally_guided_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    classifier: Callable[[Tensor], Tensor],
    *,
    start: float,
    steps: int,
    scale: float,
    closeness: float,
    prediction: Prediction,
) -> Tensor:
    """Latents of counterfactuals that another classifier pulls.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(f(ẑ_0(z_t)), target) through the denoiser:
    forward guidance (arXiv 2302.07121, equation 6). As in our guidance the source is inverted and
    not noised, the gradient is normalised, and ẑ_0 is moved by `closeness` towards the source; an
    image that f already gives to the target is not pulled. There is no mask and no search.

    Args:
        model: The joint UNet, in evaluation mode; its head is not asked.
        alphas_cumprod: ᾱ (T,).
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        classifier: f, from clean latents (B, c, h, w) to logits (B, classes), differentiable.
        start: The noise level that the sources are brought to, as a fraction of T.
        steps: Denoising steps.
        scale: s.
        closeness: How far ẑ_0 is moved towards the source in each step, in [0, 1].
        prediction: What the network predicts.

    Returns:
        (B, c, h, w).
    """
    timesteps = descending_timesteps(round(start * (len(alphas_cumprod) - 1)), steps)
    with torch.no_grad():
        source_logits = classifier(latents)
    current = inverted_path(model, alphas_cumprod, latents, timesteps, prediction).latents[0]
    for now, after in zip(timesteps, [*timesteps[1:], -1], strict=True):
        at = torch.full((len(latents),), now, device=latents.device)
        alpha_bar = alphas_cumprod[now]
        with torch.enable_grad():
            inputs = current.detach().requires_grad_(True)
            noise_pred = noise_from(model.denoise(inputs, at), inputs, alpha_bar, prediction)
            logits = classifier(predict_clean(inputs, noise_pred, alpha_bar))
            loss = target.loss(logits, source_logits).sum()
            (gradient,) = torch.autograd.grad(loss, inputs)
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
        pull = gradient / norm * gradient[0].numel() ** 0.5
        pull = pull * ~target.reached(logits).reshape(-1, 1, 1, 1)
        noise_pred = noise_pred.detach() + scale * (1 - alpha_bar).sqrt() * pull
        clean = predict_clean(current, noise_pred, alpha_bar)
        clean = clean + closeness * (latents - clean)
        noise_pred = (current - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        previous = alphas_cumprod[after] if after >= 0 else alphas_cumprod.new_ones(())
        current = ddim_step(current, noise_pred, alpha_bar, previous)
    return current.detach()
