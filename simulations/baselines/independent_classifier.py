"""An independent classifier that evaluates counterfactuals: a narrow ResNet-18.

It is trained once for the images of a run, on the same training patients with all their labels in
one place, and kept in the run's folder by the hash of its inputs.
"""

from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from mediffusion_core.common.component_folder import STATE, read_folder, write_folder
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.augmentation import turns_and_flips
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.classification import class_scores, exact_auc, macro
from mediffusion_core.settings import FederationSettings, Settings
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.baselines.federated_run import BaselineRun
from simulations.baselines.pixel_classifier import PixelClassifier, build_resnet
from simulations.baselines.settings import BaselineSettings

FOLDER, WEIGHTS = "independent", "resnet"
NARROW = (16, 32, 64, 128)
"""Widths of the stages, those of arXiv 1512.03385 for small images."""
RECIPE = BaselineSettings(rounds=14, local_epochs=0.5, every=7, ema_decay=0.5, learning_rate=2e-3)


def independent_classifier(
    run: Path, settings: Settings, dataset: FederatedDataset, console: Console
) -> tuple[PixelClassifier, dict[str, Any]]:
    """The classifier of a run's folder, trained first if it is not there.

    Args:
        run: Folder of the run.
        settings: The run's settings, with the place of its images.
        dataset: The images as `settings` partition them.
        console: Shows the progress of the training.

    Returns:
        The classifier, and its figures on the run's public test set: `auc_macro`, `auc_per_class`,
        `selected_round` and the settings of its training.
    """
    pooled = with_all_labels(settings)
    folder = run / FOLDER / _inputs_hash(pooled, dataset)
    channels, classes = settings.data.channels, dataset.store.classes
    with FileLock(run / f"{FOLDER}.lock"):  # two studies of a run may want it at once
        if not (folder / STATE).is_file():
            _train(pooled, dataset, folder, console)
    saved = read_folder(folder)
    network = build_resnet(channels, len(classes), RECIPE.stem_stride, widths=NARROW)
    network.load_state_dict(saved.load(WEIGHTS))
    classifier = PixelClassifier(
        network.eval(),
        dataset.store.multi_label,
        turns_and_flips(settings.data.augmentation),
        "fp32",
        saved.state["temperature"],
    )
    return classifier, dict(saved.state["figures"])


def _train(settings: Settings, dataset: FederatedDataset, folder: Path, console: Console) -> None:
    pooled = open_federated_dataset(settings)
    console.print("training an independent classifier")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("rounds", total=RECIPE.rounds)
        model, selected = BaselineRun(settings, RECIPE, pooled, NARROW).train(
            lambda done, total: progress.update(task, completed=done, total=total)
        )
    test = dataset.test()
    scores = class_scores(model.logits(test.take(torch.arange(len(test)))), model.multi_label)
    per_class = exact_auc(scores, test.targets)
    figures = {
        "architecture": "ResNet-18",
        "widths": list(NARROW),
        "labelled_images": len(pooled.train(0).labelled),
        **selected,
        "auc_macro": macro(per_class),
        "auc_per_class": dict(zip(dataset.store.classes, per_class.tolist(), strict=True)),
        **RECIPE.model_dump(mode="json"),
    }
    state = {"figures": figures, "temperature": model.temperature}
    write_folder(folder, {WEIGHTS: model.network.state_dict()}, state)


def with_all_labels(settings: Settings) -> Settings:
    """The settings with the same splits, all training labels, and all images in one place.

    Privacy and the server's optimizer are set to their defaults: baselines do not have them.
    """
    labels = {
        "labelled_fraction": 1.0,
        "labelled_fraction_by_site": {},
        "labelled_sites": None,
        "labels_at": "sites",
        "use_unlabelled": True,
    }
    given = settings.federation
    federation = FederationSettings(
        num_sites=given.num_sites,
        pool_sites=True,
        autoencoder_rounds=given.autoencoder_rounds,
        num_rounds=given.num_rounds,
    )
    return settings.model_copy(
        update={
            "data": settings.data.model_copy(update=labels),
            "federation": federation,
            "privacy": PrivacySettings(),
        }
    )


def _inputs_hash(settings: Settings, dataset: FederatedDataset) -> str:
    shared = settings.shared()
    return fingerprint(
        seed=shared["seed"],
        data=shared["data"],
        images=dataset.store.place.name,
        recipe=RECIPE.model_dump(mode="json"),
        widths=list(NARROW),
    )[:16]
