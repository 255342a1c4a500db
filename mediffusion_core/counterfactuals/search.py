"""The search for a counterfactual: several candidates for each image, and the best is kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.settings import CounterfactualSettings

Classify = Callable[[Tensor, Tensor], Tensor]
"""Clean latents (n, c, h, w), made of the images at the positions (n,), to calibrated logits
(n, C), as the result will be evaluated."""

Candidate = Callable[[Tensor, Target, CounterfactualSettings], Tensor]
"""Positions of n images (n,), their targets and the guidance to latents (n, c, h, w)."""


def search_counterfactuals(
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    classify: Classify,
    candidate: Candidate,
) -> Tensor:
    """The best candidate for each image.

    With inversion, candidate k of `settings.num_candidates` has k / num_candidates of the strength
    and of the guidance scale: the search for the least change that is enough. Otherwise each
    candidate draws other noise, at full strength. An image is done when its target has
    `settings.confidence` and the probabilities of the other findings changed by at most
    `settings.tolerance` in the mean; the others get a next candidate.

    Among candidates with the confidence the one is kept that changed the other findings least; else
    the most confident one among those that are classified as the target; else among all. With
    `settings.relax_mask` an image that is still not classified as the target gets a candidate with
    half of the mask's threshold, and then one without a mask; where there is no mask, two further
    draws.

    Args:
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: The classification of the counterfactuals.
        settings: Guidance.
        classify: Classifies candidates.
        candidate: Makes a candidate.

    Returns:
        (B, c, h, w).
    """
    best = _Best(latents, target, settings, classify)
    for number in range(1, settings.num_candidates + 1):
        rows = best.open_rows()
        if not len(rows):
            break
        best.keep_better(rows, candidate(rows, target.rows(rows), _with_number(settings, number)))
    for relaxed in _with_relaxed_masks(settings):
        rows = best.failed_rows()
        if not len(rows):
            break
        best.keep_better(rows, candidate(rows, target.rows(rows), relaxed))
    return best.found


def most_candidates(settings: CounterfactualSettings) -> int:
    """How many candidates a search makes at most, each from the next seed where noise is drawn."""
    return settings.num_candidates + len(_with_relaxed_masks(settings))


def _with_number(settings: CounterfactualSettings, number: int) -> CounterfactualSettings:
    """The settings of the k-th candidate of a search, k from 1."""
    if not settings.inversion:
        return settings.model_copy(update={"noise_seed": settings.noise_seed + number - 1})
    part = number / settings.num_candidates
    return settings.model_copy(
        update={
            "strength": settings.strength * part,
            "guidance_scale": settings.guidance_scale * part,
        }
    )


def _with_relaxed_masks(settings: CounterfactualSettings) -> list[CounterfactualSettings]:
    """The settings of the last candidates, at full strength."""
    # Without a mask, inversion at full strength was tried already.
    if not settings.relax_mask or (settings.inversion and not settings.mask_threshold):
        return []
    seed = settings.noise_seed + settings.num_candidates
    return [
        settings.model_copy(update={"mask_threshold": part, "noise_seed": seed + number})
        for number, part in enumerate((settings.mask_threshold / 2, 0.0))
    ]


class _Best:
    """The best candidate of each image so far."""

    def __init__(
        self, latents: Tensor, target: Target, settings: CounterfactualSettings, classify: Classify
    ) -> None:
        self.found = latents.clone()
        self._target, self._settings, self._classify = target, settings, classify
        self._before = target.probabilities(self._logits(latents, torch.arange(len(latents))))
        self._confidence = torch.full((len(latents),), -1.0, device=latents.device)
        self._moved = torch.full((len(latents),), torch.inf, device=latents.device)
        self._rank = torch.zeros(len(latents), dtype=torch.long, device=latents.device)
        """2 where the target has the confidence, 1 where it is only reached, else 0."""

    def open_rows(self) -> Tensor:
        """Positions of the images that are not done, (n,)."""
        done = (self._rank == 2) & (self._moved <= self._settings.tolerance)
        return (~done).nonzero().flatten()

    def failed_rows(self) -> Tensor:
        """Positions of the images that are not classified as the target, (n,)."""
        return (self._rank == 0).nonzero().flatten()

    def keep_better(self, rows: Tensor, made: Tensor) -> None:
        """Takes latents (n, c, h, w) of images at positions (n,), where they are an improvement."""
        target = self._target.rows(rows)
        logits = self._logits(made, rows)
        probabilities = target.probabilities(logits)
        confidence = target.confidence(probabilities)
        moved = self._others_moved(target, probabilities, self._before[rows])
        reached = target.reached(logits)
        rank = reached.long() + (reached & (confidence >= self._settings.confidence))
        nearer = moved < self._moved[rows]
        preferred = torch.where(rank == 2, nearer, confidence > self._confidence[rows])
        better = (rank > self._rank[rows]) | ((rank == self._rank[rows]) & preferred)
        self.found[rows[better]] = made[better]
        self._confidence[rows[better]] = confidence[better]
        self._moved[rows[better]] = moved[better]
        self._rank[rows[better]] = rank[better]

    @torch.no_grad()
    def _logits(self, latents: Tensor, rows: Tensor) -> Tensor:
        return self._classify(latents, rows).to(latents.device)

    @staticmethod
    def _others_moved(target: Target, after: Tensor, before: Tensor) -> Tensor:
        """Mean change of the other findings' probabilities, (n,); 0 for exclusive classes."""
        others = ~target.named(after.shape[1])
        if not target.multi_label or not bool(others.any()):
            return torch.zeros(len(after), device=after.device)
        return ((after - before).abs() * others).sum(dim=1) / others.sum(dim=1)
