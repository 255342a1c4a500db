"""The figures of one method on one choice of images."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from mediffusion_core.artifacts.trained import TrainedModel
from mediffusion_core.evaluation.counterfactual_figures import (
    Known,
    Opinion,
    effect_figures,
    image_figures,
    summarise,
)
from mediffusion_core.evaluation.counterfactuals import Counterfactuals, compare
from mediffusion_core.evaluation.generation import frechet_distance
from mediffusion_core.evaluation.resampling import Estimate
from mediffusion_core.training.local import derive_seed
from simulations.study_guidance.images import StudyImages
from simulations.study_guidance.methods import Method, timed


@dataclass(frozen=True)
class Row:
    """One method's figures, and the counterfactuals that they are of."""

    method: Method
    figures: Mapping[str, Estimate]
    fid: float
    seconds: float
    made: Counterfactuals
    wishes: Mapping[str, Mapping[str, Estimate]]
    """The same figures of each wish alone."""

    def described(self) -> dict[str, Any]:
        """As the results have it."""
        return {
            "method": self.method.name,
            "settings": self.method.described(),
            "seconds_per_image": self.seconds,
            "fid": self.fid,
            "figures": {name: asdict(one) for name, one in self.figures.items()},
            "wishes": {
                wish: {name: asdict(one) for name, one in figures.items()}
                for wish, figures in self.wishes.items()
            },
        }


@dataclass
class Bench:
    """Measures methods on the same images, with the same model and the same second opinion."""

    model: TrainedModel
    images: StudyImages
    independent: Opinion
    extractor: Callable[[Tensor], Tensor]
    num_bootstraps: int

    def measure(self, method: Method, *, effects: bool) -> Row:
        """Makes the counterfactuals and measures them; `effects` adds what takes longer."""
        target = self.images.target
        made_latents, seconds = timed(method, self.model, self._latents, target)
        made = compare(self.model, self._latents, made_latents, target)
        columns = image_figures(made, target, self._known, self.independent)
        if effects:
            real, labels = self._real_latents, self.images.real_labels
            columns |= effect_figures(self.model, made, target, real, labels)
        seed = derive_seed(self.model.settings.seed, "guidance", "bootstrap")
        groups, names = self.images.groups, self.images.panel.names
        wishes = {}
        for wish in dict.fromkeys(names):
            rows = [at for at, name in enumerate(names) if name == wish]
            wishes[wish] = summarise(
                {name: values[rows] for name, values in columns.items()},
                [groups[at] for at in rows],
                self.num_bootstraps,
                seed,
            )
        return Row(
            method,
            summarise(columns, groups, self.num_bootstraps, seed),
            self._distance(self.extractor(made.images)),
            seconds,
            made,
            wishes,
        )

    def floor(self) -> float:
        """FID of the images to be changed, as they are, without the autoencoder."""
        return self._distance(self.extractor(self.images.images))

    def _distance(self, features: Tensor) -> float:
        """To the real images; both sets as large as the smaller one."""
        count = min(len(features), len(self._real_features))
        return frechet_distance(features[:count], self._real_features[:count])

    @cached_property
    def _latents(self) -> Tensor:
        return self.model.encode(self.images.images)

    @cached_property
    def _real_latents(self) -> Tensor:
        return self.model.encode(self.images.real).cpu()

    @cached_property
    def _real_features(self) -> Tensor:
        return self.extractor(self.images.real)

    @cached_property
    def _known(self) -> Known:
        """The truth as the autoencoder shows it, as it does sources and counterfactuals."""
        known = self.images.known
        truth = known.truth.clone()
        there = truth.flatten(1).isfinite().all(dim=1)
        if bool(there.any()):
            truth[there] = self.model.decode(self.model.encode(truth[there]))
        return Known(known.masks, truth)
