"""Every figure of one evaluation round at the server, and the images that a report shows."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.common.device import autocast
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.ground_truth import Truth
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.evaluation.calibration import brier_score, calibration_error
from mediffusion_core.evaluation.classification import (
    bootstrap_auc,
    class_scores,
    exact_auc,
    interval,
    macro,
    macro_interval,
)
from mediffusion_core.evaluation.counterfactual_panel import (
    CounterfactualRow,
    choose_panel,
    make_counterfactuals,
)
from mediffusion_core.evaluation.features import build_extractor
from mediffusion_core.evaluation.generation import (
    diversity,
    frechet_distance,
    halves_by_group,
    kernel_distance,
)
from mediffusion_core.evaluation.similarity import psnr
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.models import LatentCodec, class_probabilities
from mediffusion_core.settings import Settings


class Calibrated(Protocol):
    """A model whose logits can be evaluated."""

    @property
    def temperature(self) -> float:
        """Divisor of the logits of calibrated probabilities."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (N, classes)."""


class Classifier(Calibrated, Protocol):
    """A model whose classification of images can be evaluated."""

    def encode(self, images: Tensor) -> Tensor:
        """Inputs of `logits` from images (N, C, H, W) in [0, 1]."""

    def logits(self, latents: Tensor) -> Tensor:
        """Logits (N, classes) of encoded images, returned on the CPU."""


@dataclass(frozen=True)
class Reconstructions:
    """Images (n, C, H, W), their reconstructions, and the PSNR of each in dB, (n,)."""

    images: Tensor
    made: Tensor
    psnr: Tensor


GENERATION_FIGURES = ("fid", "fid_floor", "kid", "kid_std", "diversity")
SHOWN = 32
"""Samples that are shown."""
SHOWN_RECONSTRUCTIONS = 8
SMALLEST_HALF = 4
"""Fewest images in each half of the test set."""
RECONSTRUCTED = 256
"""Images over which PSNR is averaged, at most."""


class Evaluator:
    """Evaluates models on the public test set, always with the same images and seeds."""

    def __init__(
        self,
        settings: Settings,
        test: ImageSet,
        groups: tuple[str, ...],
        sites: tuple[str, ...],
        classes: tuple[str, ...],
        multi_label: bool,
        truth: Truth | None = None,
    ) -> None:
        """Chooses the images of each figure from the public test set.

        Args:
            settings: Of the run.
            test: The public test set, n images.
            groups: Patient or lesion of each of the n images.
            sites: Site of each of the n images.
            classes: Names of the classes.
            multi_label: Whether the classes are independent.
            truth: Gives the true image without a finding, where it is known.

        Raises:
            UserError: the test set has too few images or patients, or a single exclusive class.
        """
        if len(classes) < 2 and not multi_label:
            raise UserError(f"the only class is {', '.join(classes)}; classification needs two")
        self._settings = settings
        self._test = test
        self._groups = groups
        self._sites = np.array(sites)
        self.classes = classes
        self.multi_label = multi_label
        self._truth = truth
        count = settings.evaluation.counterfactual.count
        self._halves = halves_by_group(
            groups, settings.evaluation.num_samples, derive_seed(settings.seed, "spread")
        )
        if min(map(len, self._halves)) < SMALLEST_HALF:
            raise UserError(
                f"the test set holds {len(test)} images of {len(set(groups))} patients; FID needs "
                f"two halves of {SMALLEST_HALF} images or more: raise data.test_fraction"
            )
        self._panel = choose_panel(
            test.targets, classes, multi_label, count, derive_seed(settings.seed, "panel")
        )

    @classmethod
    def of_dataset(
        cls, settings: Settings, dataset: FederatedDataset, truth: Truth | None = None
    ) -> Self:
        """The evaluator on the public test set, a share of the images of all sites.

        Raises:
            UserError: as the constructor.
        """
        store = dataset.store
        groups, sites = dataset.groups(dataset.test_rows), dataset.site_of_test()
        test = dataset.test()
        return cls(settings, test, groups, sites, store.classes, store.multi_label, truth)

    def reconstruction(self, codec: LatentCodec) -> tuple[float, Reconstructions]:
        """Mean PSNR in dB over up to 256 test images, and some of them to show."""
        chosen = self._spread(RECONSTRUCTED)
        images = self._test.take(chosen)
        device = codec.mean.device
        with torch.no_grad():
            made = torch.cat(
                [codec.decode(codec.encode(part.to(device))).cpu() for part in images.split(64)]
            )
        decibels = psnr(made, images)
        shown = slice(0, SHOWN_RECONSTRUCTIONS)
        return float(decibels.mean()), Reconstructions(images[shown], made[shown], decibels[shown])

    def encode(self, model: Classifier) -> Tensor:
        """Inputs of a model's `logits` from the test set's N images."""
        return model.encode(self._test.take(torch.arange(len(self._test))))

    def logits(self, model: Classifier) -> Tensor:
        """A model's logits (N, classes) of the test set's images."""
        return model.logits(self.encode(model))

    def classification(self, model: Calibrated, logits: Tensor) -> dict[str, Any]:
        """AUC per class, macro and per site on the test set, with intervals over patients.

        Scores are computed from the logits without the temperature: with exclusive classes it would
        change the order of samples. `calibration` has figures with and without the temperature.

        Args:
            model: Gives the temperature.
            logits: Of the test set's images, (N, classes), as `logits` gives them.
        """
        scores = class_scores(logits, self.multi_label)
        targets = self._test.targets
        per_class = exact_auc(scores, targets)
        draws = bootstrap_auc(
            scores,
            targets,
            self._groups,
            self._settings.evaluation.num_bootstraps,
            derive_seed(self._settings.seed, "bootstrap"),
        )
        return {
            "auc_macro": macro(per_class),
            "auc_macro_interval": macro_interval(per_class, draws),
            "auc_per_class": {
                name: {
                    "auc": float(per_class[index]),
                    "interval": interval(draws[:, index]),
                    "positives": int((targets[:, index] == 1).sum()),
                }
                for index, name in enumerate(self.classes)
            },
            "auc_per_site": self._per_site(scores, targets),
            "calibration": self._calibration(model, logits),
        }

    def generation(self, model: TrainedModel) -> tuple[dict[str, float], Tensor | None]:
        """FID, KID and diversity of samples against one half of the test set.

        The distance of the other half is the floor. Samples and the floor's images are equally
        many, so the two figures can be compared.

        Returns:
            The figures, and some samples (n, C, H, W). Where the denoiser is not trained the
            figures are nan and there are no samples.
        """
        if not self._settings.training.joint.diffusion_weight:
            return dict.fromkeys(GENERATION_FIGURES, math.nan), None
        first, second = self._real_features
        seed = derive_seed(self._settings.seed, "samples")
        precision = self._settings.training.precision
        with autocast(precision, model.device):  # half the time, and the same distances
            images = model.sample(len(second), self._settings.evaluation.sampling_steps, seed)
        features = self._extractor(images)
        kid, kid_std = kernel_distance(features, first, subset_size=min(100, len(first) // 2))
        figures = {
            "fid": frechet_distance(features, first),
            "fid_floor": frechet_distance(second, first),
            "kid": kid,
            "kid_std": kid_std,
            "diversity": diversity(features, first),
            "num_samples": len(second),
        }
        return figures, images[:SHOWN]

    def counterfactuals(
        self, model: TrainedModel
    ) -> tuple[dict[str, float], list[CounterfactualRow]]:
        """Flip rate, closeness and side effects over the fixed panel, and some rows to show.

        Both are empty where no image of the test set fits the panel, or where one half of the
        network is not trained.
        """
        joint = self._settings.training.joint
        if not len(self._panel.positions) or not joint.trains_both_halves:
            return {}, []
        settings = self._settings.evaluation.counterfactual
        images = self._test.take(self._panel.positions)
        begun = time.perf_counter()
        made = make_counterfactuals(model, images, self._panel.target, settings)
        seconds = time.perf_counter() - begun
        rows = [
            CounterfactualRow(
                source=made.sources[row].numpy(),
                counterfactual=made.images[row].numpy(),
                target=self._panel.names[row],
                classes=self.classes,
                before=made.before[row].numpy(),
                after=made.after[row].numpy(),
                flipped=made.outcome(row),
                truth=self._truth_of(row),
            )
            for row in range(min(settings.panel, len(images)))
        ]
        figures = made.figures(self._panel.target)
        return {**figures, "seconds_per_image": seconds / len(images)}, rows

    def _calibration(self, model: Calibrated, logits: Tensor) -> dict[str, float]:
        targets, multi_label = self._test.targets, self.multi_label
        calibrated = model.probabilities(logits)
        uncalibrated = class_probabilities(logits, multi_label)
        return {
            "temperature": model.temperature,
            "ece": calibration_error(calibrated, targets, multi_label),
            "ece_uncalibrated": calibration_error(uncalibrated, targets, multi_label),
            "brier": brier_score(calibrated, targets, multi_label),
            "brier_uncalibrated": brier_score(uncalibrated, targets, multi_label),
        }

    def _per_site(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        return {
            str(site): macro(exact_auc(scores[chosen], targets[chosen]))
            for site in np.unique(self._sites)
            for chosen in [torch.from_numpy(self._sites == site)]
        }

    def _truth_of(self, row: int) -> NDArray[np.float32] | None:
        if self._truth is None or bool(self._panel.target.present[row]):
            return None
        finding = self.classes[int(self._panel.target.index[row])]
        store_row = int(self._test.rows[int(self._panel.positions[row])])
        pixels = self._truth(store_row, finding)
        return None if pixels is None else (pixels.astype(np.float32) / np.float32(255))[None]

    def _spread(self, count: int) -> Tensor:
        order = torch.Generator().manual_seed(derive_seed(self._settings.seed, "spread"))
        return torch.randperm(len(self._test), generator=order)[:count]

    @cached_property
    def _extractor(self) -> Callable[[Tensor], Tensor]:
        evaluation = self._settings.evaluation
        return build_extractor(evaluation.extractor, evaluation.inception_weights)

    @cached_property
    def _real_features(self) -> tuple[Tensor, Tensor]:
        first, second = self._halves
        return self._extractor(self._test.take(first)), self._extractor(self._test.take(second))
