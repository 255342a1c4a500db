"""Guided counterfactuals: the same image, as the classifier would see it with another label.

The source is taken up to a noise level; on the way back the head's gradient at the noisy latent
pulls towards the target. The head is trained at these noise levels, so its gradient there means
something. What need not change is kept: the mask of what may change comes from where the head
looks along the source's own path, and everything outside follows that path.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.diffusion.noise_process import (
    descending_timesteps,
    noise_from,
    predict_clean,
)
from mediffusion_core.diffusion.solvers import solver_steps
from mediffusion_core.diffusion.source_path import (
    change_mask,
    inverted_path,
    logits_along,
    noised_path,
)
from mediffusion_core.diffusion.target import Target
from mediffusion_core.model import JointUNet
from mediffusion_core.settings import CounterfactualSettings, Prediction

Look = Callable[[Tensor], Tensor]
"""Logits (B, C) of clean latents (B, c, h, w), as the result will be judged."""

SURE = 0.95
"""Confidence at a noisy latent above which nothing pulls; more than is asked of the result, since
less of it is left at the clean one."""


def counterfactual_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
    look: Look | None = None,
) -> Tensor:
    """Latents of near images that the classifier assigns to the target, by a search for the least.

    Attempt k of `settings.attempts` starts at k / attempts of the noise level and pulls with as
    much of the scale, so that most images are changed no more than they need to be; only images
    that no attempt has brought to `settings.confidence` go on to the next. Of an image that none
    has, the attempt that came nearest is kept.

    Args:
        model: The joint UNet, in evaluation mode.
        alphas_cumprod: ᾱ (T,).
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        settings: Guidance.
        prediction: What the network predicts.
        look: How the result is classified; by the head at the clean latent where None.

    Returns:
        (B, c, h, w).
    """
    look = look or model.classify
    found = latents.clone()
    best = torch.full((len(latents),), -1.0, device=latents.device)
    for attempt in range(1, settings.attempts + 1):
        open_rows = (best < settings.confidence).nonzero().flatten()
        if not len(open_rows):
            break
        part = attempt / settings.attempts
        tried = settings.model_copy(
            update={"start": settings.start * part, "scale": settings.scale * part}
        )
        wish = target.rows(open_rows)
        made = guided_latents(model, alphas_cumprod, latents[open_rows], wish, tried, prediction)
        with torch.no_grad():
            sure = wish.confidence(wish.probabilities(look(made).to(made.device)))
        better = sure > best[open_rows]
        found[open_rows[better]] = made[better]
        best[open_rows[better]] = sure[better]
    return found


def guided_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """One attempt: up to `start` and back under guidance, for all images alike.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. The other findings are held at what the head says of the
    source at the same noise level. Then ẑ_0 is moved by `closeness` towards the source, and
    outside the mask each step ends on the source's path (arXiv 2201.09865, eq. 8). An image whose
    target is sure is not pulled.

    Takes and returns what `counterfactual_latents` does.
    """
    start = round(settings.start * (len(alphas_cumprod) - 1))
    timesteps = descending_timesteps(start, settings.steps)
    path = (
        inverted_path(model, alphas_cumprod, latents, timesteps, prediction)
        if settings.inversion
        else noised_path(alphas_cumprod, latents, timesteps, settings.noise_seed)
    )
    source_logits, saliency = logits_along(model, path, target)
    mask = change_mask(saliency, settings.mask_threshold)  # (B, 1, h, w)
    current = path.latents[0]
    taken = solver_steps(settings.solver, alphas_cumprod, timesteps)
    for step, now in enumerate(timesteps):
        alpha_bar = alphas_cumprod[now]
        output, pull = _pulled(model, current, now, target, source_logits[step], mask, settings)
        noise_pred = noise_from(output, current, alpha_bar, prediction)
        noise_pred = noise_pred + settings.scale * (1 - alpha_bar).sqrt() * pull
        clean = predict_clean(current, noise_pred, alpha_bar)
        clean = clean + settings.closeness * (latents - clean)
        noise_pred = (current - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        current = taken(step, current, noise_pred)
        current = mask * current + (1 - mask) * path.latents[step + 1]
    return current


def _pulled(
    model: JointUNet,
    latents: Tensor,
    timestep: int,
    target: Target,
    source_logits: Tensor,
    mask: Tensor,
    settings: CounterfactualSettings,
) -> tuple[Tensor, Tensor]:
    """What the network predicts, and the gradient within the mask at an RMS of 1; (B, c, h, w)."""
    at = torch.full((len(latents),), timestep, device=latents.device)
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        output, logits = model(inputs, at)
        loss = target.loss(logits, source_logits, settings.hold).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
    gradient = gradient * mask
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
    size = mask.flatten(1).sum(dim=1).reshape(-1, 1, 1, 1) * latents.shape[1]
    confidence = target.confidence(target.probabilities(logits.detach()))
    unsure = (confidence < SURE).reshape(-1, 1, 1, 1)
    return output.detach(), torch.where(unsure, gradient / norm * size.sqrt(), 0.0)
