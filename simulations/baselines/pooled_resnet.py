"""A ResNet-18 that is trained once on pooled labelled images, as a classifier for studies."""

from dataclasses import replace

import torch

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.baselines.local_training import train_locally
from simulations.baselines.pixel_classifier import PixelClassifier, build_resnet
from simulations.baselines.settings import BaselineSettings
from simulations.baselines.task import BaselineTask


def train_resnet(
    model: TrainedModel, images: ImageSet, steps: int, number: int = 0
) -> PixelClassifier:
    """Trains for a number of steps with the run's augmentation; returns the last weights.

    Args:
        model: The model of a run, for its classes, seed, precision and augmentation.
        images: The images, at least one with a label.
        steps: Steps of `BaselineSettings().batch_size` images.
        number: Number of this training; each has its own weights and batches.
    """
    settings = model.settings
    # A round's steps are its epochs times the steps of an epoch, rounded up.
    epochs = (steps - 0.5) * BaselineSettings().batch_size / len(images.labelled)
    baseline = BaselineSettings(rounds=1, local_epochs=epochs)
    task = BaselineTask(
        baseline,
        settings.data.augmentation,
        model.multi_label,
        settings.training.precision,
    )
    torch.manual_seed(derive_seed(settings.seed, "pooled", "weights", number))
    network = build_resnet(settings.data.channels, len(model.classes), baseline.stem_stride)
    train_locally(
        network,
        task.optimizer(network),
        images,
        task,
        round_number=1,
        seed=derive_seed(settings.seed, "pooled", "batches", number),
    )
    return PixelClassifier(network, task.multi_label, task.orientation_free, task.precision)


def calibrated(classifier: PixelClassifier, images: ImageSet) -> PixelClassifier:
    """The classifier with the temperature that fits images on which it was not trained."""
    logits = classifier.logits(images.take(torch.arange(len(images))))
    losses = temperature_losses(logits, images.targets, classifier.multi_label)
    return replace(classifier, temperature=best_temperature(losses))
