"""The figures of one method on one set of images."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.axioms import composition, reversibility
from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.evaluation.correlation_difference import correlation_difference
from mediffusion_core.evaluation.counterfactual_metrics import (
    GroundTruth,
    IndependentClassifier,
    effect_figures,
    image_figures,
    summarise,
)
from mediffusion_core.evaluation.counterfactual_panel import Counterfactuals, compare
from mediffusion_core.evaluation.generation import frechet_distance
from mediffusion_core.evaluation.similarity import feature_similarity
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.studies.guidance.kept_subgroups import KEPT, SubgroupProbe, kept_figure
from simulations.studies.guidance.methods import Method, timed
from simulations.studies.study_images import StudyImages

DRAWS, REDRAWN = 3, 8
"""Draws of noise for each image, and the number of images, of the measure of diversity."""
CYCLED = 64
"""Most images of composition and reversibility, which need two more counterfactuals of each."""


@dataclass(frozen=True)
class Row:
    """One method's figures and counterfactuals."""

    method: Method
    figures: Mapping[str, Estimate]
    fid: float
    sfid: float
    seconds: float
    made: Counterfactuals
    by_target: Mapping[str, Mapping[str, Estimate]]
    """The same figures for the images of each target."""

    def described(self) -> dict[str, Any]:
        """The row of the results."""
        return {
            "method": self.method.name,
            "settings": self.method.described(),
            "seconds_per_image": self.seconds,
            "fid": self.fid,
            "sfid": self.sfid,
            "figures": {name: asdict(one) for name, one in self.figures.items()},
            "wishes": {
                target: {name: asdict(one) for name, one in figures.items()}
                for target, figures in self.by_target.items()
            },
        }


@dataclass
class MethodEvaluator:
    """Measures methods on the same images with the same model and independent classifier."""

    model: TrainedModel
    images: StudyImages
    independent: IndependentClassifier
    extractor: Callable[[Tensor], Tensor]
    spatial: Callable[[Tensor], Tensor]
    """Features with their spatial layout, for sFID."""
    perceptual: Callable[[Tensor, Tensor], Tensor] | None
    """LPIPS; None if its weights are not installed."""
    probes: Mapping[str, SubgroupProbe]
    """By attribute, the regression on `extractor`'s features that reads an image's subgroup."""
    num_bootstraps: int

    def measure(self, method: Method, *, effects: bool) -> Row:
        """Makes the counterfactuals and measures them; `effects` adds the slow figures."""
        target = self.images.target
        latents, detail = self._latents, self._detail_of(method)
        made_latents, seconds = timed(method, self.model, latents, target, detail)
        sources, changed = (self.model.render(one, detail) for one in (latents, made_latents))
        made = compare(self.model, sources, changed, target)
        known = self._decoded_truth if method.reconstructed else self.images.known
        columns = image_figures(made, target, known, self.independent)
        features = self.extractor(made.images)
        seed = derive_seed(self.model.settings.seed, "guidance", "bootstrap")
        together = {}
        if effects:
            real, labels = self.images.real, self.images.real_labels
            columns |= effect_figures(self.model, made, target, real, labels)
            columns |= self._perceptual_figures(method, made)
            columns |= self._axiom_figures(method, made)
            columns["s3"] = feature_similarity(features, self._source_features(method, made))
            columns |= self._kept_figures(features)
            together["correlation_difference"] = self._correlation_difference(made, seed)
        groups, names = self.images.groups, self.images.panel.names
        by_target = {}
        for name in dict.fromkeys(names):
            rows = [at for at, other in enumerate(names) if other == name]
            by_target[name] = summarise(
                {figure: values[rows] for figure, values in columns.items()},
                [groups[at] for at in rows],
                self.num_bootstraps,
                seed,
            )
        return Row(
            method,
            summarise(columns, groups, self.num_bootstraps, seed) | together,
            self._distance(features, self._real_features),
            self._distance(self.spatial(made.images), self._real_spatial),
            seconds,
            made,
            by_target,
        )

    def floor(self) -> float:
        """FID of the images to be changed, without the autoencoder."""
        return self._distance(self._image_features, self._real_features)

    def _distance(self, features: Tensor, real: Tensor) -> float:
        """FID of features (n, D) and (m, D), on the first min(n, m) rows of both."""
        count = min(len(features), len(real))
        return frechet_distance(features[:count], real[:count])

    def _perceptual_figures(self, method: Method, made: Counterfactuals) -> dict[str, Tensor]:
        """LPIPS to the source, and diversity: mean LPIPS of pairs of draws (arXiv 2203.15636).

        The diversity of a method that draws no noise is 0.
        """
        nothing = torch.full((len(made.images),), torch.nan)
        if self.perceptual is None:
            return {"lpips": nothing, "diversity": nothing}
        few = torch.arange(min(REDRAWN, len(made.images)))
        target, latents = self.images.target.rows(few), self._latents[few]
        detail = self._detail_of(method)[few]
        sets = [made.images[few]]
        for number in range(1, DRAWS):
            again = method.redrawn(number)
            sets.append(
                sets[0]
                if again is None
                else self.model.render(again.make(self.model, latents, target, detail), detail)
            )
        pairs = [self.perceptual(one, two) for one, two in combinations(sets, 2)]
        diversity = nothing.clone()
        diversity[few] = torch.stack(pairs).mean(dim=0)
        return {"lpips": self.perceptual(made.images, made.sources), "diversity": diversity}

    def _axiom_figures(self, method: Method, made: Counterfactuals) -> dict[str, Tensor]:
        """Composition and reversibility of the first images."""
        few = torch.arange(min(CYCLED, len(made.images)))
        sources, images = made.sources[few], made.images[few]
        original = self.images.target.rows(few).undone(made.before[few])

        def change(given: Tensor, asked: Target) -> Tensor:
            latents = self.model.encode(given)
            detail = self.model.detail(given, latents)
            if method.reconstructed:
                detail = torch.zeros_like(detail)
            return self.model.render(method.make(self.model, latents, asked, detail), detail)

        measured = {
            "composition": composition(change, sources, original),
            "reversibility": reversibility(change, sources, images, original),
        }
        rest = torch.full((len(made.images) - len(few),), torch.nan)
        return {name: torch.cat([values, rest]) for name, values in measured.items()}

    def _kept_figures(self, changed: Tensor) -> dict[str, Tensor]:
        """Whether counterfactuals of features (n, D) keep the subgroups of the original images."""
        unknown = torch.full((len(changed),), torch.nan)
        images, rows = self._image_features, self.images.rows
        return {
            kept_figure(name): self.probes[name].kept(images, changed, rows)
            if name in self.probes
            else unknown
            for name in KEPT
        }

    def _correlation_difference(self, made: Counterfactuals, seed: int) -> Estimate:
        before, after = (self.independent.logits(one) > 0 for one in (made.sources, made.images))
        images = self.images
        return correlation_difference(
            before, after, images.target, images.labels, images.groups, self.num_bootstraps, seed
        )

    def _source_features(self, method: Method, made: Counterfactuals) -> Tensor:
        return self.extractor(made.sources) if method.reconstructed else self._image_features

    @cached_property
    def _image_features(self) -> Tensor:
        return self.extractor(self.images.images)

    @cached_property
    def _latents(self) -> Tensor:
        return self.model.encode(self.images.images)

    def _detail_of(self, method: Method) -> Tensor:
        """The detail of the sources (n, C, H, W) that the method's images have."""
        return torch.zeros_like(self._detail) if method.reconstructed else self._detail

    @cached_property
    def _detail(self) -> Tensor:
        return self.model.detail(self.images.images, self._latents)

    @cached_property
    def _real_features(self) -> Tensor:
        return self.extractor(self.images.real)

    @cached_property
    def _real_spatial(self) -> Tensor:
        return self.spatial(self.images.real)

    @cached_property
    def _decoded_truth(self) -> GroundTruth:
        """The ground truth through the autoencoder, as decoded sources are."""
        known = self.images.known
        return GroundTruth(known.masks, self._decoded(known.truth), self._decoded(known.added))

    def _decoded(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) through the autoencoder, nan where they are."""
        decoded = images.clone()
        known = images.flatten(1).isfinite().all(dim=1)
        if bool(known.any()):
            decoded[known] = self.model.decode(self.model.encode(images[known]))
        return decoded
