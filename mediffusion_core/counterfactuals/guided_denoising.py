"""A counterfactual's way back from noise: how hard a classifier's gradient pulls, and when not."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.inversion import SourcePath
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import predict_clean
from mediffusion_core.diffusion.solvers import solver_steps
from mediffusion_core.settings import CounterfactualSettings

Pull = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""z_t (B, c, h, w) and t to ε̂ and to what is added to it, as `normalised_pull` gives it."""

See = Callable[[Tensor], tuple[Tensor, Tensor]]
"""z_t (B, c, h, w) to ε̂ and to calibrated logits (B, C), differentiable."""


def way_back(
    alphas_cumprod: Tensor,
    path: SourcePath,
    mask: Tensor,
    pull: Pull,
    settings: CounterfactualSettings,
) -> Tensor:
    """From the path's noisiest level to clean latents (B, c, h, w), step by step.

    Outside the mask each step ends on the source's path (arXiv 2201.09865, eq. 8).

    Args:
        alphas_cumprod: ᾱ (T,).
        path: The source at every level.
        mask: Where it may be left, (B, 1, h, w) or (1, 1, h, w) in [0, 1].
        pull: Who denoises and pulls.
        settings: Guidance.
    """
    current, source = path.latents[0], path.latents[-1]
    taken = solver_steps(settings.solver, alphas_cumprod, path.timesteps)
    for step, now in enumerate(path.timesteps):
        noise_pred, pulled = pull(current, now)
        alpha_bar = alphas_cumprod[now]
        noise_pred = _pulled_noise(current, noise_pred, pulled, source, alpha_bar, settings)
        current = taken(step, current, noise_pred)
        current = mask * current + (1 - mask) * path.latents[step + 1]
    return current


def pulled_by(
    see: See,
    latents: Tensor,
    target: Target,
    source_logits: Tensor,
    mask: Tensor,
    settings: CounterfactualSettings,
) -> tuple[Tensor, Tensor]:
    """ε̂ and the pull of a classifier's gradient at z_t, as `Pull` gives them.

    Args:
        see: Denoiser and classifier.
        latents: z_t (B, c, h, w).
        target: What the classifier should see.
        source_logits: What the other findings are held at, (B, C).
        mask: As `normalised_pull` takes it.
        settings: Guidance.
    """
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        noise_pred, logits = see(inputs)
        loss = target.loss(logits, source_logits, settings.hold).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
    confidence = target.confidence(target.probabilities(logits.detach()))
    return noise_pred.detach(), normalised_pull(gradient, confidence, mask, settings)


def normalised_pull(
    gradient: Tensor, confidence: Tensor, mask: Tensor, settings: CounterfactualSettings
) -> Tensor:
    """The gradient within the mask at an RMS of 1, so that a scale means the same for every image.

    Args:
        gradient: g (B, c, h, w), of the target's loss.
        confidence: What the classifier gives to the target, (B,); from half way between what the
            settings ask of the result and certainty on, nothing pulls.
        mask: (B, 1, h, w) or (1, 1, h, w) in [0, 1].
        settings: Guidance.

    Returns:
        √d g/‖g‖ with d the numbers within the mask, (B, c, h, w).
    """
    gradient = gradient * mask
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
    size = mask.flatten(1).sum(dim=1).reshape(-1, 1, 1, 1) * gradient.shape[1]
    unsure = (confidence < (1 + settings.confidence) / 2).reshape(-1, 1, 1, 1)
    return torch.where(unsure, gradient / norm * size.sqrt(), 0.0)


def _pulled_noise(
    latents: Tensor,
    noise_pred: Tensor,
    pull: Tensor,
    source: Tensor,
    alpha_bar: Tensor,
    settings: CounterfactualSettings,
) -> Tensor:
    """ε̂ + s √(1 - ᾱ_t) · pull (arXiv 2105.05233, algorithm 2), with ẑ_0 nearer to the source.

    Args:
        latents: z_t (B, c, h, w).
        noise_pred: ε̂.
        pull: As `normalised_pull` gives it.
        source: Clean latents, towards which ẑ_0 is moved by `settings.closeness`.
        alpha_bar: ᾱ_t, a scalar.
        settings: Guidance, with s.

    Returns:
        The noise that leads to that ẑ_0, (B, c, h, w).
    """
    noise_pred = noise_pred + settings.scale * (1 - alpha_bar).sqrt() * pull
    clean = predict_clean(latents, noise_pred, alpha_bar)
    clean = clean + settings.closeness * (source - clean)
    return (latents - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
