"""Logistic regression on features that are not trained, of all sites' images at one place.

A network that learns from the same few labels has to be better than this. The images are pooled:
a federation can fit no better one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from mediffusion_core.evaluation.classification import class_scores, exact_auc, macro
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.models import class_probabilities
from mediffusion_core.models.whitening import FeatureSums, Whitening
from mediffusion_core.run_io.provenance import current_commit
from mediffusion_core.settings import Settings
from mediffusion_core.training.public_features import public_features
from simulations.baselines.settings import LinearSettings

PENALTIES = tuple(10.0**power for power in range(-3, 3))
"""Of the squared weights, half of their sum; the validation AUC selects one."""
STEPS = 100


@dataclass(frozen=True)
class LinearClassifier:
    """Logits W x + b of features x (N, K)."""

    weight: Tensor
    """(K, C)."""
    bias: Tensor
    """(C,)."""

    @classmethod
    def fitted(
        cls, features: Tensor, targets: Tensor, multi_label: bool, penalty: float
    ) -> "LinearClassifier":
        """Minimises the mean cross-entropy of labelled rows, plus penalty / 2 · ‖W‖².

        Args:
            features: (N, K).
            targets: (N, C) in {0, 1}, NaN where a label is missing.
            multi_label: Whether the classes are independent.
            penalty: Above 0, so that there is one minimum.
        """
        weight = torch.zeros(features.shape[1], targets.shape[1], requires_grad=True)
        bias = torch.zeros(targets.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            errors = classification_loss(features @ weight + bias, targets, multi_label)
            value = errors.mean() + penalty / 2 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return cls(weight.detach(), bias.detach())

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (N, C)."""
        return features @ self.weight + self.bias


@dataclass(frozen=True)
class Temperature:
    """The calibration of a classifier whose logits are known."""

    temperature: float
    multi_label: bool

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (N, classes)."""
        return class_probabilities(logits / self.temperature, self.multi_label)


class LinearRun:
    """Features, their whitening over all training images, and the best penalty."""

    def __init__(
        self, settings: Settings, baseline: LinearSettings, dataset: FederatedDataset
    ) -> None:
        """Takes the settings of the run that it is compared with, and its images."""
        self._settings, self._dataset = settings, dataset
        encoder = {"encoder": baseline.features}
        self._alignment = settings.training.joint.alignment.model_copy(update=encoder)
        self._multi_label = dataset.store.multi_label

    def execute(self, progress: Callable[[int, int], None]) -> tuple[dict[str, Any], Tensor]:
        """Fits, selects by validation patients, and evaluates on the public test set.

        Returns:
            As `BaselineRun.execute`.
        """
        begun = time.monotonic()
        dataset, sites = self._dataset, range(len(self._dataset.clients))
        train = [dataset.train(site) for site in sites]
        rows = np.concatenate([images.rows for images in train])
        features, whitening = self._whitened(rows)
        targets = torch.cat([images.targets for images in train])
        known = ~targets.isnan().all(dim=1)
        validation = [dataset.validation(site) for site in sites]
        validated = np.concatenate([images.rows for images in validation])
        validated_features = whitening(self._features(validated))
        truth = torch.cat([images.targets for images in validation])
        best: tuple[float, LinearClassifier] | None = None
        for number, penalty in enumerate(PENALTIES):
            fitted = LinearClassifier.fitted(
                features[known], targets[known], self._multi_label, penalty
            )
            scores = class_scores(fitted(validated_features), self._multi_label)
            auc = macro(exact_auc(scores, truth))
            if best is None or auc > best[0]:
                best = auc, fitted
            progress(number + 1, len(PENALTIES))
        assert best is not None
        auc, chosen = best
        losses = temperature_losses(chosen(validated_features), truth, self._multi_label)
        model = Temperature(best_temperature(losses), self._multi_label)
        logits = chosen(whitening(self._features(dataset.test_rows)))
        evaluator = Evaluator.of_dataset(self._settings, dataset)
        figures = {
            **evaluator.classification(model, logits),
            "auc_pooled": auc,
            "parameters": chosen.weight.numel() + chosen.bias.numel(),
            "seconds": round(time.monotonic() - begun, 1),
            "seed": self._settings.seed,
            "commit": current_commit(),
        }
        return figures, logits

    def _whitened(self, rows: NDArray[np.int64]) -> tuple[Tensor, Whitening]:
        """Directions (n, K) of training images, as alignment has them, and their map."""
        features = self._features(rows)
        sums = FeatureSums.of(features, self._dataset.groups(rows))
        alignment = self._alignment
        whitening = Whitening.of(sums, alignment.directions, alignment.shrinkage)
        return whitening(features), whitening

    def _features(self, rows: NDArray[np.int64]) -> Tensor:
        return public_features(self._dataset, rows, self._alignment, torch.device("cpu"))
