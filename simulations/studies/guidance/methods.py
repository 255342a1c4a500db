"""The methods of the study: our guidance at several settings, and the published procedure."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.search import most_candidates
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings

ONE_CANDIDATE = {"num_candidates": 1, "relax_mask": False}
"""Settings of a search with one candidate."""


@dataclass(frozen=True)
class Ours:
    """Our guidance with some settings."""

    name: str
    guidance: CounterfactualSettings
    reconstructed: bool = False
    """Whether sources and counterfactuals are decoded latents, without the images' detail."""

    def make(self, model: TrainedModel, latents: Tensor, target: Target, detail: Tensor) -> Tensor:
        """Latents (n, c, h, w) of counterfactuals."""
        return model.explain(latents, target, self.guidance, detail)

    def redrawn(self, number: int) -> "Ours | None":
        """The same method with new noise; None if it draws no noise."""
        if self.guidance.inversion:
            return None
        seed = self.guidance.noise_seed + number * most_candidates(self.guidance)
        guidance = self.guidance.model_copy(update={"noise_seed": seed})
        return Ours(self.name, guidance, self.reconstructed)

    def described(self) -> dict[str, Any]:
        """Its settings, for the results."""
        return self.guidance.model_dump(mode="json", exclude={"panel", "count"})


@dataclass(frozen=True)
class Baseline:
    """The published procedure: all steps from `start`, one scale, no mask and no closeness."""

    name: str
    start: float
    scale: float
    draw: int = 0
    reconstructed: ClassVar[bool] = False

    def make(self, model: TrainedModel, latents: Tensor, target: Target, detail: Tensor) -> Tensor:
        """Latents (n, c, h, w) of counterfactuals."""
        seed = derive_seed(model.settings.seed, "reference", self.draw)
        return model.explain_as_published(
            latents, target, strength=self.start, guidance_scale=self.scale, seed=seed
        )

    def redrawn(self, number: int) -> "Baseline":
        """The same method with new noise."""
        return Baseline(self.name, self.start, self.scale, number)

    def described(self) -> dict[str, Any]:
        """Its settings, for the results."""
        return {"guidance_scale": self.scale, "strength": self.start, "num_inference_steps": None}


@dataclass(frozen=True)
class Source:
    """The source itself: the best possible closeness and FID, and no flip."""

    name: str = "source"
    reconstructed: ClassVar[bool] = False

    def make(self, model: TrainedModel, latents: Tensor, target: Target, detail: Tensor) -> Tensor:
        """The latents, unchanged."""
        return latents

    def redrawn(self, number: int) -> None:
        """None: this method draws no noise."""
        return None

    def described(self) -> dict[str, Any]:
        """Its settings, all None."""
        return dict.fromkeys(("guidance_scale", "strength", "num_inference_steps"))


Method = Ours | Baseline | Source


def grid(
    base: CounterfactualSettings,
    scales: Sequence[float],
    starts: Sequence[float],
    steps: Sequence[int],
) -> list[Ours]:
    """Our guidance with one candidate, at each combination of scale, start and steps."""
    once = base.model_copy(update=ONE_CANDIDATE)
    return [
        Ours(
            f"scale {scale:g}, strength {start:g}, {count} steps",
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
    """Our guidance, and the same with one of its active parts left out or exchanged."""
    changes: dict[str, dict[str, Any]] = {
        "ours": {},
        "one candidate": ONE_CANDIDATE,
        "without mask": {"mask_threshold": 0.0},
        "without closeness": {"proximity_weight": 0.0},
        "others not held": {"preserve_weight": 0.0},
        "noised, not inverted": {"inversion": not base.inversion},
        "by DPM-Solver++": {"solver": "dpmsolver++"},
    }
    if base.mask_threshold:
        changes["mask not relaxed"] = {"relax_mask": False}
        changes["one candidate, mask relaxed"] = {"num_candidates": 1}
    if not base.inversion:
        changes["inverted, not noised"] = changes.pop("noised, not inverted")
    methods: list[Ours] = []
    for name, change in changes.items():
        guidance = base.model_copy(update=change)
        if all(guidance != known.guidance for known in methods):
            methods.append(Ours(name, guidance))
    return [*methods, Ours("without the image's detail", base, reconstructed=True)]


def refuse_untrained_noise(model: GuidedModel, methods: Sequence[Ours]) -> None:
    """Checks that every method has a step at a noise level on which the head was trained.

    Raises:
        UserError: naming the first method that has none.
    """
    for method in methods:
        try:
            model.guided(method.guidance.timesteps(len(model.process)))
        except UserError as error:
            raise UserError(f"{method.name}: {error}") from None


def timed(
    method: Method, model: TrainedModel, latents: Tensor, target: Target, detail: Tensor
) -> tuple[Tensor, float]:
    """Latents (n, c, h, w) of the counterfactuals, and the seconds for each image."""
    begun = time.perf_counter()
    made = method.make(model, latents, target, detail)
    return made, (time.perf_counter() - begun) / len(latents)
