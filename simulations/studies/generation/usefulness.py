"""Are samples worth training on? A ResNet-18 that learns from them, tested on real images.

The classification accuracy score of arXiv 1905.10887, with the AUC in the place of accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.classification import (
    bootstrap_auc,
    class_scores,
    exact_auc,
    interval,
    macro,
    macro_draws,
)
from simulations.baselines.pixel_classifier import PixelClassifier
from simulations.baselines.pooled_resnet import train_resnet
from simulations.studies.trained_run import TrainedRun

BOOTSTRAPS = 400
TRAININGS = 3
"""Of each set: a network's first weights and batches move its AUC as much as drawn images may."""


@dataclass(frozen=True)
class Judged:
    """Several classifiers' AUC on the test set, trained alike but for what is drawn."""

    auc: float
    """Their mean."""
    draws: Tensor
    """Macro AUC of each of them in each bootstrap over patients, (trainings, B), on the same
    patients for all."""


def usefulness(
    opened: TrainedRun,
    labelled: ImageSet,
    draw: Callable[[Tensor], Tensor],
    steps: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Trains on the labelled images, on as many drawn ones, and on both, for equally many steps.

    Each several times: intervals are of one training, over trainings as well as over patients.

    Args:
        opened: The run.
        labelled: The labelled training images, of all sites.
        draw: Maps labels (n, classes) to images (n, C, H, W) that are asked to show them.
        steps: Of each training, as `train_resnet` takes them.
        tell: Told what is done.

    Returns:
        For `real`, `synthetic` and `both`: how many images, mean macro AUC and its 95 % interval,
        and for the last two the difference to `real`, paired over resampled patients.
    """
    settings = opened.settings
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "generation", "wishes"))
    chosen = torch.randint(len(labelled), (len(labelled),), generator=generator)
    labels = labelled.targets[chosen]
    tell(f"drawing {len(labels)} images to train on")
    synthetic = images_in_memory(draw(labels), labels)
    real = images_in_memory(labelled.take(torch.arange(len(labelled))), labelled.targets)
    both = ImageSet(
        np.concatenate([real.pixels[real.rows], synthetic.pixels[synthetic.rows]]),
        np.arange(len(real) + len(synthetic)),
        torch.cat([real.targets, synthetic.targets]),
    )
    sets: Mapping[str, ImageSet] = {"real": real, "synthetic": synthetic, "both": both}
    judged: dict[str, Judged] = {}
    for name, images in sets.items():
        trained = []
        for number in range(TRAININGS):
            tell(f"ResNet-18 {number + 1} of {TRAININGS} on {len(images)} images: {name}")
            trained.append(train_resnet(opened, images, steps, number))
        judged[name] = _judge(opened, trained)
    return {
        name: {
            "images": len(sets[name]),
            "auc": one.auc,
            "interval": list(interval(one.draws.flatten())),
            "against_real": None if name == "real" else difference(one, judged["real"]),
        }
        for name, one in judged.items()
    }


def images_in_memory(images: Tensor, targets: Tensor) -> ImageSet:
    """Images (N, C, H, W) in [0, 1] with their labels as a set, rounded to bytes as stored ones."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return ImageSet(pixels, np.arange(len(pixels)), targets)


def _judge(opened: TrainedRun, classifiers: Sequence[PixelClassifier]) -> Judged:
    test = opened.hospitals.test()
    pixels, groups = test.take(torch.arange(len(test))), opened.hospitals.groups(test.rows)
    seed = derive_seed(opened.settings.seed, "bootstrap")
    aucs, draws = [], []
    for classifier in classifiers:
        scores = class_scores(classifier.logits(pixels), classifier.multi_label)
        per_class = exact_auc(scores, test.targets)
        drawn = bootstrap_auc(scores, test.targets, groups, BOOTSTRAPS, seed)  # (B, classes)
        aucs.append(macro(per_class))
        draws.append(macro_draws(per_class, drawn))
    return Judged(sum(aucs) / len(aucs), torch.stack(draws))


def difference(one: Judged, other: Judged) -> dict[str, float]:
    """Of every training of one to every training of the other, on the same patients."""
    apart = one.draws[:, None] - other.draws[None]  # (trainings, trainings, B)
    low, high = interval(apart.flatten())
    return {"value": one.auc - other.auc, "low": low, "high": high}
