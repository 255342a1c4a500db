"""Models whose random classifiers spread their logits, so that an AUC has few ties."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.compose import compose
from helpers.untrained import untrained_model
from mediffusion_core.data.image_set import ImageSet, joined
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.evaluation.classification import class_scores, exact_auc
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from mediffusion_core.settings import Settings


def classifying_model(
    settings: Settings, classes: Sequence[str], images: ImageSet, seed: int = 0
) -> TrainedModel:
    """A model with random logits of mean 0 and deviation 2 over the images of each class."""
    model = untrained_model(settings, classes)
    *_, last = (one for one in model.joint.head.modules() if isinstance(one, nn.Linear))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        last.weight.copy_(torch.randn(last.weight.shape, generator=generator))
        last.bias.zero_()
        logits = model_logits(model, images)
        scale = 2.0 / logits.std(dim=0)
        last.weight.mul_(scale[:, None])
        last.bias.copy_(-logits.mean(dim=0) * scale)
    model.temperature = 1.5
    return model


def model_logits(model: TrainedModel, images: ImageSet) -> Tensor:
    """Logits (N, C) of all images."""
    return model.logits(model.encode(images.take(torch.arange(len(images)))))


def pooled_auc(model: TrainedModel, images: ImageSet) -> Tensor:
    """Exact areas (C,) of all images in one place."""
    return exact_auc(class_scores(model_logits(model, images), model.multi_label), images.targets)


def export_classifying_model(overrides: Sequence[str], folder: Path) -> float:
    """Exports a model for the phantoms of three sites.

    Args:
        overrides: Of the phantoms and networks.
        folder: `exported` is written there, beside the images.

    Returns:
        The macro AUC over all labelled images in one place.
    """
    settings = compose("config", (*overrides, f"data.store={folder / 'store'}"))
    dataset = open_federated_dataset(settings)
    images = joined([dataset.evaluated(site, "all") for site in range(3)])
    model = classifying_model(settings, dataset.store.classes, images)
    JointDiffusionPipeline.of(model).save_pretrained(folder / "exported")
    return float(pooled_auc(model, images).mean())
