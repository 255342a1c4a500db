"""A ResNet-18 that is trained once on labelled images in one place: a yardstick, not a rival."""

from dataclasses import replace

import torch

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.augmentation import turns_and_flips
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from simulations.baselines.local_training import rival_optimizer, train_locally
from simulations.baselines.pixel_classifier import PixelClassifier, build_resnet
from simulations.baselines.settings import RivalSettings
from simulations.studies.trained_run import TrainedRun


def train_resnet(
    opened: TrainedRun, images: ImageSet, steps: int, number: int = 0
) -> PixelClassifier:
    """Trains for a number of steps, with augmentation as the run has it; the last weights count.

    Args:
        opened: The run whose classes, seed and precision are used.
        images: At least one with a label.
        steps: Of `RivalSettings().batch_size` images.
        number: Of several trainings, each of which draws weights and batches of its own.
    """
    settings, model = opened.settings, opened.model
    # A round's steps are its passes, rounded up.
    epochs = (steps - 0.5) * RivalSettings().batch_size / len(images.labelled)
    rival = RivalSettings(rounds=1, local_epochs=epochs)
    torch.manual_seed(derive_seed(settings.seed, "pooled", "weights", number))
    network = build_resnet(settings.data.channels, len(model.classes), rival.stem_stride)
    train_locally(
        network,
        rival_optimizer(network, rival),
        images,
        rival,
        augmentation=settings.data.augmentation,
        multi_label=model.multi_label,
        precision=settings.training.precision,
        round_number=1,
        seed=derive_seed(settings.seed, "pooled", "batches", number),
    )
    free = turns_and_flips(settings.data.augmentation)
    return PixelClassifier(network, model.multi_label, free, settings.training.precision)


def calibrated(classifier: PixelClassifier, images: ImageSet) -> PixelClassifier:
    """The classifier with the temperature that fits images on which it was not trained."""
    logits = classifier.logits(images.take(torch.arange(len(images))))
    losses = temperature_losses(logits, images.targets, classifier.multi_label)
    return replace(classifier, temperature=best_temperature(losses))
