"""The usefulness of samples for training: a ResNet-18 trained on them, tested on real images.

This is the classification accuracy score of arXiv 1905.10887, with AUC in place of accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.classification import interval
from simulations.baselines.macro_auc import Bootstrap, bootstrapped_macro_auc
from simulations.baselines.pixel_classifier import PixelClassifier
from simulations.baselines.pooled_resnet import train_resnet
from simulations.studies.trained_run import TrainedRun

BOOTSTRAPS = 400
TRAININGS = 3
"""Trainings on each set: first weights and batches change the AUC as much as the images may."""


@dataclass(frozen=True)
class RepeatedAuc:
    """The test AUC of several trainings on one set."""

    mean: float
    """Mean macro AUC of the trainings."""
    draws: Tensor
    """Macro AUC of each training in each bootstrap, (trainings, B); the bootstraps resample the
    same patients for all trainings."""


def usefulness(
    run: TrainedRun,
    labelled: ImageSet,
    draw: Callable[[Tensor], Tensor],
    steps: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Trains on labelled images, on as many generated ones, and on both, for equally many steps.

    Args:
        run: The trained run.
        labelled: The labelled training images of all sites.
        draw: Maps labels (n, classes) to generated images (n, C, H, W).
        steps: Steps of each training, as `train_resnet` takes them.
        report: Called with a line for each step of the study.

    Returns:
        For `real`, `synthetic` and `both`: the number of images, the mean macro AUC and its 95 %
        interval over trainings and patients; for the last two also the difference from `real`,
        paired by patient.
    """
    settings = run.settings
    # This key keeps the random numbers of published figures.
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "generation", "wishes"))
    chosen = torch.randint(len(labelled), (len(labelled),), generator=generator)
    labels = labelled.targets[chosen]
    report(f"drawing {len(labels)} images to train on")
    synthetic = images_in_memory(draw(labels), labels)
    real = images_in_memory(labelled.take(torch.arange(len(labelled))), labelled.targets)
    both = ImageSet(
        np.concatenate([real.pixels[real.rows], synthetic.pixels[synthetic.rows]]),
        np.arange(len(real) + len(synthetic)),
        torch.cat([real.targets, synthetic.targets]),
    )
    sets: Mapping[str, ImageSet] = {"real": real, "synthetic": synthetic, "both": both}
    aucs: dict[str, RepeatedAuc] = {}
    for name, images in sets.items():
        trained = []
        for number in range(TRAININGS):
            report(f"ResNet-18 {number + 1} of {TRAININGS} on {len(images)} images: {name}")
            trained.append(train_resnet(run.model, images, steps, number))
        aucs[name] = _test(run, trained)
    return {
        name: {
            "images": len(sets[name]),
            "auc": auc.mean,
            "interval": list(interval(auc.draws.flatten())),
            "against_real": None if name == "real" else difference(auc, aucs["real"]),
        }
        for name, auc in aucs.items()
    }


def images_in_memory(images: Tensor, targets: Tensor) -> ImageSet:
    """A set of images (N, C, H, W) in [0, 1], rounded to bytes as stored images are."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return ImageSet(pixels, np.arange(len(pixels)), targets)


def _test(run: TrainedRun, classifiers: Sequence[PixelClassifier]) -> RepeatedAuc:
    test = run.dataset.test()
    pixels = test.take(torch.arange(len(test)))
    seed = derive_seed(run.settings.seed, "bootstrap")
    bootstrap = Bootstrap(run.dataset.groups(test.rows), BOOTSTRAPS, seed)
    aucs = [
        bootstrapped_macro_auc(one.logits(pixels), test.targets, one.multi_label, bootstrap)
        for one in classifiers
    ]
    mean = sum(auc.value for auc in aucs) / len(aucs)
    return RepeatedAuc(mean, torch.stack([auc.draws for auc in aucs]))


def difference(first: RepeatedAuc, second: RepeatedAuc) -> dict[str, float]:
    """The difference of two means, with its interval over pairs of trainings and patients."""
    differences = first.draws[:, None] - second.draws[None]  # (trainings, trainings, B)
    low, high = interval(differences.flatten())
    return {"value": first.mean - second.mean, "low": low, "high": high}
