"""What is compared: our guidance at many settings, and the published procedure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.search import most_candidates
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings

ONE_ATTEMPT = {"num_candidates": 1, "relax_mask": False}
"""What makes a search try once."""


@dataclass(frozen=True)
class Ours:
    """Our guidance with some settings."""

    name: str
    guidance: CounterfactualSettings

    def make(self, model: TrainedModel, latents: Tensor, target: Target) -> Tensor:
        """Latents of counterfactuals."""
        return model.explain(latents, target, self.guidance)

    def redrawn(self, number: int) -> "Ours | None":
        """The same with draws that no search before had; None where nothing is drawn."""
        if self.guidance.inversion:
            return None
        seed = self.guidance.noise_seed + number * most_candidates(self.guidance)
        return Ours(self.name, self.guidance.model_copy(update={"noise_seed": seed}))

    def described(self) -> dict[str, Any]:
        """Its settings, as the table and the results have them."""
        return self.guidance.model_dump(mode="json", exclude={"panel", "count"})


@dataclass(frozen=True)
class Reference:
    """The published procedure: all steps from `start`, one scale, nothing kept."""

    name: str
    start: float
    scale: float
    draw: int = 0

    def make(self, model: TrainedModel, latents: Tensor, target: Target) -> Tensor:
        """Latents of counterfactuals."""
        seed = derive_seed(model.settings.seed, "reference", self.draw)
        return model.explain_as_published(
            latents, target, strength=self.start, guidance_scale=self.scale, seed=seed
        )

    def redrawn(self, number: int) -> "Reference":
        """The same with another draw."""
        return Reference(self.name, self.start, self.scale, number)

    def described(self) -> dict[str, Any]:
        """Its settings, as the table and the results have them."""
        return {
            "guidance_scale": self.scale,
            "strength": self.start,
            "num_inference_steps": None,
        }


@dataclass(frozen=True)
class Nothing:
    """The source itself: the best closeness and FID that there are, and no flip."""

    name: str = "source"

    def make(self, model: TrainedModel, latents: Tensor, target: Target) -> Tensor:
        """The latents as they are."""
        return latents

    def redrawn(self, number: int) -> None:
        """Nothing is drawn."""
        return None

    def described(self) -> dict[str, Any]:
        """Its settings: none."""
        return dict.fromkeys(("guidance_scale", "strength", "num_inference_steps"))


Method = Ours | Reference | Nothing


def grid(
    base: CounterfactualSettings,
    scales: Sequence[float],
    starts: Sequence[float],
    steps: Sequence[int],
) -> list[Ours]:
    """One attempt at each scale, start and number of steps: what the search searches through."""
    once = base.model_copy(update=ONE_ATTEMPT)
    return [
        Ours(
            f"s {scale:g}, t {start:g}, {count} steps",
            once.model_copy(
                update={
                    "guidance_scale": scale,
                    "strength": start,
                    "num_inference_steps": count,
                }
            ),
        )
        for scale, start, count in product(scales, starts, steps)
    ]


def ablations(base: CounterfactualSettings) -> list[Ours]:
    """Our guidance, and the same with one part left out or exchanged, of those that are in use."""
    changes: dict[str, dict[str, Any]] = {
        "ours": {},
        "one attempt": ONE_ATTEMPT,
        "without mask": {"mask_threshold": 0.0},
        "without closeness": {"proximity_weight": 0.0},
        "others not held": {"preserve_weight": 0.0},
        "noised, not inverted": {"inversion": not base.inversion},
        "by DPM-Solver++": {"solver": "dpmsolver++"},
    }
    if base.mask_threshold:
        changes["mask not relaxed"] = {"relax_mask": False}
        changes["one attempt, mask relaxed"] = {"num_candidates": 1}
    if not base.inversion:
        changes["inverted, not noised"] = changes.pop("noised, not inverted")
    methods: list[Ours] = []
    for name, change in changes.items():
        guidance = base.model_copy(update=change)
        if all(guidance != known.guidance for known in methods):
            methods.append(Ours(name, guidance))
    return methods


def refuse_blind_guidance(model: GuidedModel, methods: Sequence[Ours]) -> None:
    """Raises UserError where one of them never comes down to noise that the head has seen."""
    for method in methods:
        try:
            model.guided(method.guidance.timesteps(len(model.process)))
        except UserError as error:
            raise UserError(f"{method.name}: {error}") from None


def timed(
    method: Method, model: TrainedModel, latents: Tensor, target: Target
) -> tuple[Tensor, float]:
    """The counterfactuals' latents, and the seconds an image that they took."""
    begun = time.perf_counter()
    made = method.make(model, latents, target)
    return made, (time.perf_counter() - begun) / len(latents)
