"""The search for a counterfactual: several attempts at each image, of which the best is kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.settings import CounterfactualSettings

Look = Callable[[Tensor], Tensor]
"""Calibrated logits (B, C) of clean latents (B, c, h, w), as the result will be judged."""

Attempt = Callable[[Tensor, Target, CounterfactualSettings], Tensor]
"""Positions of n images (n,), what they should become and with which guidance, to latents
(n, c, h, w)."""


def search_counterfactuals(
    latents: Tensor, target: Target, settings: CounterfactualSettings, look: Look, attempt: Attempt
) -> Tensor:
    """The best attempt at each image.

    With inversion, attempt k of `settings.attempts` starts at k / attempts of the noise level and
    pulls with as much of the scale: the search for the least change that is enough. With drawn
    noise each attempt draws another one, at full strength. Only images that no attempt has brought
    to `settings.confidence`, with the other findings moved by no more than `settings.tolerance` in
    the mean, go on to the next. Of several attempts with the confidence the one that moved the
    others least is kept, else of those that are classified as asked, else of all, the surest one.
    With `settings.relax_mask` what is still not classified as asked is tried once more with half of
    the mask's threshold, and then without a mask; where there is none, with two further draws.

    Args:
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What they should become.
        settings: Guidance.
        look: Who decides whether they have.
        attempt: Makes one attempt.

    Returns:
        (B, c, h, w).
    """
    best = _Best(latents, target, settings, look)
    for number in range(1, settings.attempts + 1):
        rows = best.open_rows()
        if not len(rows):
            break
        best.keep_better(rows, attempt(rows, target.rows(rows), _of_attempt(settings, number)))
    for relaxed in _with_relaxed_masks(settings):
        rows = best.failed_rows()
        if not len(rows):
            break
        best.keep_better(rows, attempt(rows, target.rows(rows), relaxed))
    return best.found


def most_attempts(settings: CounterfactualSettings) -> int:
    """How many attempts a search makes at most, each from the next seed where noise is drawn."""
    return settings.attempts + len(_with_relaxed_masks(settings))


def _of_attempt(settings: CounterfactualSettings, number: int) -> CounterfactualSettings:
    """What the k-th attempt of a search is made with, k from 1."""
    if not settings.inversion:
        return settings.model_copy(update={"noise_seed": settings.noise_seed + number - 1})
    part = number / settings.attempts
    return settings.model_copy(
        update={"start": settings.start * part, "scale": settings.scale * part}
    )


def _with_relaxed_masks(settings: CounterfactualSettings) -> list[CounterfactualSettings]:
    """What the last attempts are made with, at full strength."""
    # Without a mask an inversion at full strength has been made.
    if not settings.relax_mask or (settings.inversion and not settings.mask_threshold):
        return []
    seed = settings.noise_seed + settings.attempts
    return [
        settings.model_copy(update={"mask_threshold": part, "noise_seed": seed + number})
        for number, part in enumerate((settings.mask_threshold / 2, 0.0))
    ]


class _Best:
    """The best that has been found for each image so far."""

    def __init__(
        self, latents: Tensor, target: Target, settings: CounterfactualSettings, look: Look
    ) -> None:
        self.found = latents.clone()
        self._target, self._settings, self._look = target, settings, look
        self._before = target.probabilities(self._seen(latents))
        self._sure = torch.full((len(latents),), -1.0, device=latents.device)
        self._moved = torch.full((len(latents),), torch.inf, device=latents.device)
        self._rank = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        """2 where the target has the confidence, 1 where it is only reached, else 0."""

    def open_rows(self) -> Tensor:
        """Positions of the images that are not yet as was asked, (n,)."""
        done = (self._rank == 2) & (self._moved <= self._settings.tolerance)
        return (~done).nonzero().flatten()

    def failed_rows(self) -> Tensor:
        """Positions of the images that are not classified as was asked, (n,)."""
        return (self._rank == 0).nonzero().flatten()

    def keep_better(self, rows: Tensor, made: Tensor) -> None:
        """Takes latents (n, c, h, w) of images at positions (n,), where they are an improvement."""
        wish = self._target.rows(rows)
        logits = self._seen(made)
        seen = wish.probabilities(logits)
        sure, moved = wish.confidence(seen), self._others_moved(wish, seen, self._before[rows])
        reached = wish.reached(logits)
        rank = reached.long() + (reached & (sure >= self._settings.confidence))
        nearer = torch.where(rank == 2, moved < self._moved[rows], sure > self._sure[rows])
        better = (rank > self._rank[rows]) | ((rank == self._rank[rows]) & nearer)
        self.found[rows[better]] = made[better]
        self._sure[rows[better]], self._moved[rows[better]] = sure[better], moved[better]
        self._rank[rows[better]] = rank[better]

    @torch.no_grad()
    def _seen(self, latents: Tensor) -> Tensor:
        return self._look(latents).to(latents.device)

    @staticmethod
    def _others_moved(target: Target, seen: Tensor, before: Tensor) -> Tensor:
        """Mean change of the other findings, (n,); of exclusive classes none is held, 0."""
        others = ~target.named(seen.shape[1])
        if not target.multi_label or not bool(others.any()):
            return torch.zeros(len(seen), device=seen.device)
        return ((seen - before).abs() * others).sum(dim=1) / others.sum(dim=1)
