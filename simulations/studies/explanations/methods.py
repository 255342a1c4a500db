"""The compared explanations: each method gives a map (n, H, W) of the same n images."""

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
    """The images to explain, the model, and what the methods need."""

    model: TrainedModel
    external: PixelClassifier
    guidance: CounterfactualSettings
    sources: Tensor
    """The images, (n, C, H, W)."""
    target: Target
    """Target of the counterfactuals: the image without the class."""
    real: Tensor
    """Images of other patients, (m, C, H, W)."""
    seed: int

    @cached_property
    def latents(self) -> Tensor:
        """Latents of the images, (n, c, h, w)."""
        return self.model.encode(self.sources)

    @cached_property
    def detail(self) -> Tensor:
        """Of the images, (n, C, H, W)."""
        return self.model.detail(self.sources, self.latents)

    @cached_property
    def probabilities(self) -> Tensor:
        """The model's probabilities of the sources, (n, classes)."""
        return self.model.classify(self.sources)

    @cached_property
    def index(self) -> Tensor:
        """The explained class of each image, (n,): the finding, or the predicted class."""
        if self.target.multi_label:
            return self.target.index
        return self.probabilities.argmax(dim=1)

    @property
    def baseline(self) -> Tensor:
        """The mean of other patients' images, (C, H, W), an image without detail."""
        return self.real.mean(dim=0)


@dataclass(frozen=True)
class Explanation:
    """One method's maps."""

    name: str
    maps: Tensor
    """(n, H, W), signed or not; high values mark pixels that support the class."""
    seconds: float
    """Seconds for each image."""
    flipped: Tensor | None = None
    """Whether the model predicts the target, (n,); None for methods without counterfactuals."""


def explanations(case: Case, report: Callable[[str], None]) -> list[Explanation]:
    """The maps of all methods; the last method, chance, gives every pixel a random value.

    `report` is called with each method's name before it starts.
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
    counterfactuals: dict[str, Callable[[], Tensor]] = {
        EXTERNAL: lambda: external_latents(
            model, case.external, case.latents, case.target, case.guidance, case.detail
        ),
        OURS: lambda: model.explain(case.latents, case.target, case.guidance, case.detail),
    }
    explained = []
    for name in (*maps, *counterfactuals, CHANCE):
        report(name)
        if name in counterfactuals:
            explained.append(_difference(case, name, counterfactuals[name]))
        else:
            explained.append(_timed(name, maps.get(name, chance)))
    return explained


def _timed(name: str, draw: Callable[[], Tensor]) -> Explanation:
    begun = time.perf_counter()
    maps = draw()
    return Explanation(name, maps, (time.perf_counter() - begun) / len(maps))


def _difference(case: Case, name: str, make: Callable[[], Tensor]) -> Explanation:
    """The map Σ over channels of |counterfactual - source|, from latents that `make` returns."""
    begun = time.perf_counter()
    images = case.model.render(make(), case.detail)
    seconds = (time.perf_counter() - begun) / len(images)
    flipped = case.target.reached(case.model.logits(case.model.encode(images)))
    return Explanation(name, (images - case.sources).abs().sum(dim=1), seconds, flipped)
