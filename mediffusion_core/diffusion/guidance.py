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
    SourcePath,
    change_mask,
    inverted_path,
    logits_along,
    noised_path,
    seen_along,
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
    """Latents of near images that the classifier assigns to the target, by a search.

    With inversion, attempt k of `settings.attempts` starts at k / attempts of the noise level and
    pulls with as much of the scale: the search for the least change that is enough. With drawn
    noise each attempt draws another one, at full strength. Only images that no attempt has brought
    to `settings.confidence`, with the other findings moved by no more than `settings.tolerance` in
    the mean, go on to the next. Of several attempts with the confidence the one that moved the
    others least is kept, of none the one that came nearest.

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
    search = _Search(latents, target, settings, look or model.classify)
    mask = None
    if not settings.inversion:  # then it is the same for every draw
        mask = source_mask(model, alphas_cumprod, latents, target, settings, prediction)
    for attempt in range(1, settings.attempts + 1):
        rows = search.open_rows()
        if not len(rows):
            break
        tried, wish = _of_attempt(settings, attempt), target.rows(rows)
        part = None if mask is None else mask[rows]
        made = guided_latents(model, alphas_cumprod, latents[rows], wish, tried, prediction, part)
        search.keep_better(rows, made)
    return search.found


def _of_attempt(settings: CounterfactualSettings, attempt: int) -> CounterfactualSettings:
    """What the k-th attempt of a search is made with, k from 1."""
    if not settings.inversion:
        return settings.model_copy(update={"noise_seed": settings.noise_seed + attempt - 1})
    part = attempt / settings.attempts
    return settings.model_copy(
        update={"start": settings.start * part, "scale": settings.scale * part}
    )


class _Search:
    """The best that has been found for each image so far."""

    def __init__(
        self, latents: Tensor, target: Target, settings: CounterfactualSettings, look: Look
    ) -> None:
        self.found = latents.clone()
        self._target, self._settings, self._look = target, settings, look
        self._before = self._seen(latents, target)
        self._sure = torch.full((len(latents),), -1.0, device=latents.device)
        self._moved = torch.full((len(latents),), torch.inf, device=latents.device)

    def open_rows(self) -> Tensor:
        """Positions of the images that are not yet as was asked, (n,)."""
        done = (self._sure >= self._settings.confidence) & (self._moved <= self._settings.tolerance)
        return (~done).nonzero().flatten()

    def keep_better(self, rows: Tensor, made: Tensor) -> None:
        """Takes latents (n, c, h, w) of images at positions (n,), where they are an improvement."""
        wish = self._target.rows(rows)
        seen = self._seen(made, wish)
        sure, moved = wish.confidence(seen), self._others_moved(wish, seen, self._before[rows])
        enough = sure >= self._settings.confidence
        was_enough = self._sure[rows] >= self._settings.confidence
        nearer = torch.where(enough, moved < self._moved[rows], sure > self._sure[rows])
        better = (enough & ~was_enough) | ((enough == was_enough) & nearer)
        self.found[rows[better]] = made[better]
        self._sure[rows[better]], self._moved[rows[better]] = sure[better], moved[better]

    @torch.no_grad()
    def _seen(self, latents: Tensor, target: Target) -> Tensor:
        return target.probabilities(self._look(latents).to(latents.device))

    @staticmethod
    def _others_moved(target: Target, seen: Tensor, before: Tensor) -> Tensor:
        """Mean change of the other findings, (n,); of exclusive classes none is held, 0."""
        others = ~target.named(seen.shape[1])
        if not target.multi_label or not bool(others.any()):
            return torch.zeros(len(seen), device=seen.device)
        return ((seen - before).abs() * others).sum(dim=1) / others.sum(dim=1)


def guided_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
    mask: Tensor | None = None,
) -> Tensor:
    """One attempt: up to `start` and back under guidance, for all images alike.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. The other findings are held at what the head says of the
    source at the same noise level. Then ẑ_0 is moved by `closeness` towards the source, and
    outside the mask each step ends on the source's path (arXiv 2201.09865, eq. 8). An image whose
    target is sure is not pulled.

    Takes and returns what `counterfactual_latents` does, and takes the mask (B, 1, h, w) where it
    is known, as `source_mask` finds it.
    """
    timesteps = _timesteps(alphas_cumprod, settings)
    if settings.inversion:
        path = inverted_path(model, alphas_cumprod, latents, timesteps, prediction)
        source_logits, saliency = logits_along(model, path, target)
        mask = change_mask(saliency, settings.mask_threshold)
    else:
        path = noised_path(alphas_cumprod, latents, timesteps, settings.noise_seed)
        source_logits = seen_along(model, path)
        if mask is None:
            mask = source_mask(model, alphas_cumprod, latents, target, settings, prediction)
    return _way_back(model, alphas_cumprod, path, source_logits, mask, target, settings, prediction)


def source_mask(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """Where the images may change, (B, 1, h, w): where the head looks along their inverted paths.

    A drawn noise would draw the mask, too. Takes what `counterfactual_latents` does.
    """
    timesteps = _timesteps(alphas_cumprod, settings)
    path = inverted_path(model, alphas_cumprod, latents, timesteps, prediction)
    return change_mask(logits_along(model, path, target)[1], settings.mask_threshold)


def _timesteps(alphas_cumprod: Tensor, settings: CounterfactualSettings) -> list[int]:
    start = round(settings.start * (len(alphas_cumprod) - 1))
    return descending_timesteps(start, settings.steps)


def _way_back(
    model: JointUNet,
    alphas_cumprod: Tensor,
    path: SourcePath,
    source_logits: list[Tensor],
    mask: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """From the path's noisiest level to clean latents (B, c, h, w), step by step."""
    timesteps, latents = path.timesteps, path.latents[-1]
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
