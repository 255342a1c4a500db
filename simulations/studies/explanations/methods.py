"""The explanations that are compared: each a map (n, H, W) of the same n images."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.attribution import (
    expected_gradients,
    grad_cam,
    integrated_gradients,
)
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings
from simulations.baselines.external_guidance import external_latents
from simulations.baselines.pixel_classifier import PixelClassifier

OURS, EXTERNAL, CHANCE = "ours", "external guidance", "chance"


@dataclass(frozen=True)
class Case:
    """What is explained, and with what."""

    model: TrainedModel
    external: PixelClassifier
    guidance: CounterfactualSettings
    latents: Tensor
    """Of the images, (n, c, h, w)."""
    target: Target
    """What counterfactuals are asked for: that the class is gone."""
    real: Tensor
    """Images of other patients, (m, C, H, W)."""
    seed: int

    @cached_property
    def sources(self) -> Tensor:
        """The images as the autoencoder shows them, (n, C, H, W): what all methods explain."""
        return self.model.decode(self.latents)

    @cached_property
    def probabilities(self) -> Tensor:
        """What the model says of the sources, (n, classes)."""
        return self.model.classify(self.sources)

    @cached_property
    def index(self) -> Tensor:
        """The class that is explained in each: the finding, or the class that the model sees."""
        if self.target.multi_label:
            return self.target.index
        return self.probabilities.argmax(dim=1)

    @property
    def baseline(self) -> Tensor:
        """The mean of the other patients' images, (C, H, W): a chest or a skin without detail."""
        return self.real.mean(dim=0)


@dataclass(frozen=True)
class Explanation:
    """One method's maps."""

    name: str
    maps: Tensor
    """(n, H, W), signed or not: the higher, the more it speaks for the class."""
    seconds: float
    """An image."""
    flipped: Tensor | None = None
    """Whether the model sees the target in each counterfactual, (n,); None of other methods."""


def explanations(case: Case, tell: Callable[[str], None]) -> list[Explanation]:
    """All methods' maps, ours last but for chance, which ranks pixels by lot.

    `tell` is told each method's name before it begins.
    """
    model, sources, index = case.model, case.sources, case.index

    def chance() -> Tensor:
        generator = torch.Generator().manual_seed(case.seed)
        return torch.rand(len(sources), *sources.shape[2:], generator=generator)

    maps: dict[str, Callable[[], Tensor]] = {
        "Grad-CAM": lambda: grad_cam(model, sources, index),
        "integrated gradients": lambda: integrated_gradients(model, sources, index, case.baseline),
        "SHAP": lambda: expected_gradients(model, sources, index, case.real, case.seed),
    }
    made: dict[str, Callable[[], Tensor]] = {
        EXTERNAL: lambda: external_latents(
            model, case.external, case.latents, case.target, case.guidance
        ),
        OURS: lambda: model.explain(case.latents, case.target, case.guidance),
    }
    explained = []
    for name in (*maps, *made, CHANCE):
        tell(name)
        if name in made:
            explained.append(_difference(case, name, made[name]))
        else:
            explained.append(_timed(name, maps.get(name, chance)))
    return explained


def _timed(name: str, draw: Callable[[], Tensor]) -> Explanation:
    begun = time.perf_counter()
    maps = draw()
    return Explanation(name, maps, (time.perf_counter() - begun) / len(maps))


def _difference(case: Case, name: str, make: Callable[[], Tensor]) -> Explanation:
    """Σ over channels of |counterfactual - source|, and which counterfactuals flip the model."""
    begun = time.perf_counter()
    images = case.model.decode(make())
    seconds = (time.perf_counter() - begun) / len(images)
    flipped = case.target.reached(case.model.logits(case.model.encode(images)))
    return Explanation(name, (images - case.sources).abs().sum(dim=1), seconds, flipped)
