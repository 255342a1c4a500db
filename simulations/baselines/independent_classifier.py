"""A second opinion on counterfactuals: a narrow ResNet-18 that shares nothing with the model.

It is trained once for a run's images, on the same training patients with all their labels in one
place, and kept in the run's folder by the hash of what it depends on.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from mediffusion_core.common.component_folder import read_folder, write_folder
from mediffusion_core.data.augmentation import turns_and_flips
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.classification import class_scores, exact_auc, macro
from mediffusion_core.settings import FederationSettings, Settings
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.baselines.federated_run import RivalRun
from simulations.baselines.pixel_classifier import PixelClassifier, build_resnet
from simulations.baselines.settings import RivalSettings

FOLDER, WEIGHTS = "independent", "resnet"
NARROW = (16, 32, 64, 128)
"""Widths of the ResNets that the source trains on small images."""
RECIPE = RivalSettings(rounds=14, local_epochs=0.5, every=7, ema_decay=0.5, learning_rate=2e-3)


def independent_classifier(
    run: Path, settings: Settings, hospitals: FederatedDataset, console: Console
) -> tuple[PixelClassifier, dict[str, Any]]:
    """The classifier that is kept in the run's folder, trained where there is none yet.

    Args:
        run: Folder of the run whose model is to be judged.
        settings: The run's settings, with the place of its images.
        hospitals: The images as these settings deal them.
        console: Where progress is shown.

    Returns:
        The classifier, and its figures on the run's public test set: `auc_macro`,
        `auc_per_class`, `selected_round` and how it was trained.
    """
    everything = with_all_labels(settings)
    folder = run / FOLDER / _digest(everything, hospitals)
    channels, classes = settings.data.channels, hospitals.store.classes
    if not (folder / "state.json").is_file():
        _train(everything, hospitals, folder, console)
    saved = read_folder(folder)
    network = build_resnet(channels, len(classes), RECIPE.stem_stride, widths=NARROW)
    network.load_state_dict(saved.load(WEIGHTS))
    free = turns_and_flips(settings.data.augmentation)
    classifier = PixelClassifier(
        network.eval(), hospitals.store.multi_label, free, "fp32", saved.state["temperature"]
    )
    return classifier, dict(saved.state["figures"])


def _train(settings: Settings, hospitals: FederatedDataset, folder: Path, console: Console) -> None:
    pooled = open_federated_dataset(settings)
    console.print("training an independent classifier")
    rounds = iter(track(range(RECIPE.rounds), "rounds", console=console, transient=True))
    next(rounds)
    model, selected = RivalRun(settings, RECIPE, pooled, NARROW).train(
        lambda *_: next(rounds, None)
    )
    test = hospitals.test()
    scores = class_scores(model.logits(test.take(torch.arange(len(test)))), model.multi_label)
    per_class = exact_auc(scores, test.targets)
    figures = {
        "architecture": "ResNet-18",
        "widths": list(NARROW),
        "labelled_images": len(pooled.train(0).labelled),
        **selected,
        "auc_macro": macro(per_class),
        "auc_per_class": dict(zip(hospitals.store.classes, per_class.tolist(), strict=True)),
        **RECIPE.model_dump(mode="json"),
    }
    state = {"figures": figures, "temperature": model.temperature}
    write_folder(folder, {WEIGHTS: model.network.state_dict()}, state)


def with_all_labels(settings: Settings) -> Settings:
    """The same splits, all training labels, one place.

    How the model was trained, privately or by a server's own optimizer, is left out.
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


def _digest(settings: Settings, hospitals: FederatedDataset) -> str:
    shared = settings.shared()
    used = {
        "seed": shared["seed"],
        "data": shared["data"],
        "images": hospitals.store.place.name,
        "recipe": RECIPE.model_dump(mode="json"),
        "widths": list(NARROW),
    }
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]
