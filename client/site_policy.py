"""The images of a deployed site, and the limits that its site file sets for a run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from mediffusion_core.common.errors import RefusedError, UserError
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.messaging.protocol import KINDS_OF_TASK, WEIGHTED_BY
from mediffusion_core.privacy.ledger.site_ledger import site_secret
from mediffusion_core.settings import Settings
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.settings.site_file import SiteFile
from mediffusion_core.settings.site_policy import Bounds, SitePolicy

AGREED = ("classes", "multi_label", "test_fraction", "validation_fraction", "max_bad_fraction")
"""Settings of `data` that describe a site's images and that a run needs to know. The site file sets
them. A run that sets them otherwise is refused before the images are opened: whether they fit the
images would tell what these are."""


def open_own(settings: Settings, path: Path) -> tuple[Settings, FederatedDataset, SitePolicy]:
    """Opens the images of a site file, prepared and split by the run's settings.

    The site file sets where the images lie, how they are read and split, and their classes. The run
    sets their size.

    Args:
        settings: Of the run.
        path: The site file.

    Returns:
        The run's settings with the site's device and limit of ε; the images as those of the only
        site; and the site policy.

    Raises:
        RefusedError: if the run asks for more than the site agrees to, or describes the images
            otherwise than the site file.
        UserError: if the site file is wrong, or its images have not the run's classes in the
            run's order, so that outputs of the classifier would mean other findings.
    """
    file = SiteFile.read(path)
    agreed = _agreed(settings, file)
    classes = settings.data.classes
    if classes is None:
        raise UserError("a run on the sites' own images needs data.classes")
    _refuse_other_data(settings, file)
    # A real site is not dealt by the run's partition.
    one_place = {
        "partition": "uniform",
        "splits": "dealt",
        "scanner_shift": 0.0,
        "labels_at": "sites",
        "labelled_sites": None,
        "labelled_fraction_by_site": {},
    }
    if settings.task == "statistics":  # two fractions would give the labels of few patients
        one_place["labelled_fraction"] = 1.0
    read = file.data_settings(settings.data.image_size, settings.data.channels)
    described = {name: getattr(read, name) for name in type(file.data).model_fields}
    data = settings.data.model_copy(update={**described, "classes": classes, **one_place})
    one_site = {"num_sites": 1, "pool_sites": False, "only_site": None, "left_out_site": None}
    federation = settings.federation.model_copy(update=one_site)
    own = settings.model_copy(update={"data": data, "federation": federation})
    dataset = open_federated_dataset(own, secret=site_secret(file))
    if dataset.store.classes != classes:
        held, wanted = ", ".join(dataset.store.classes), ", ".join(classes)
        raise UserError(f"the images are of the classes {held}, the run is of {wanted}")
    (client,) = dataset.clients
    clients = (replace(client, site=file.name),)
    dataset = replace(dataset, clients=clients, centres=clients)
    return agreed, dataset, file.policy


def refuse_kind(settings: Settings, kind: str) -> None:
    """Refuses a message that does not belong to the task of the run.

    The site agreed to the task with the settings; a server could send any kind of message.

    Raises:
        RefusedError: for a message of another task.
    """
    if kind not in KINDS_OF_TASK[settings.task]:
        raise RefusedError(f"with task={settings.task} the site answers no {kind}")


def _agreed(settings: Settings, file: SiteFile) -> Settings:
    """The run's settings with the site's device and limit of ε, if the site agrees to them."""
    policy, privacy = file.policy, settings.privacy
    _refuse_settings(settings, policy)
    if settings.task == "training":
        _refuse_to_weigh(settings, policy)
    _refuse_smaller_limit(privacy, policy)
    if privacy.enabled:
        _refuse_less_privacy(privacy, policy)
    elif policy.require_privacy:
        raise RefusedError(
            "privacy.enabled is false; this site takes part in no run without differential privacy "
            "unless its file says policy.require_privacy = false"
        )
    # One limit in all runs: a filter with another one has another order.
    own = {"max_epsilon": policy.max_epsilon}
    return settings.model_copy(
        update={"device": policy.device, "privacy": privacy.model_copy(update=own)}
    )


def _refuse_smaller_limit(privacy: PrivacySettings, policy: SitePolicy) -> None:
    """Refuses a run with a limit of ε below the site's, which would have no effect."""
    if privacy.max_epsilon is not None and privacy.max_epsilon < (policy.max_epsilon or math.inf):
        raise RefusedError(
            f"privacy.max_epsilon={privacy.max_epsilon:g} is a limit for simulations; that of a "
            "site is policy.max_epsilon of its file, the same in all runs"
        )


def _refuse_to_weigh(settings: Settings, policy: SitePolicy) -> None:
    """Refuses a run that weighs the site's reply by metrics that may not leave it."""
    weighing = {*WEIGHTED_BY.values()}
    if settings.federation.weighting == "steps":
        weighing.add("steps")
    if kept_back := weighing - policy.allowed_metrics:
        names = " and ".join(sorted(kept_back))
        raise RefusedError(f"policy.allowed_metrics lacks {names}, which weigh this site's reply")


def _refuse_other_data(settings: Settings, file: SiteFile) -> None:
    """Refuses a run that describes the images otherwise than the site file.

    Without privacy the site file may leave the classes to the run.
    """
    if settings.privacy.enabled and file.data.classes is None:
        raise RefusedError("a private run needs data.classes in the site file")
    for name in AGREED:
        asked, own = getattr(settings.data, name), getattr(file.data, name)
        if asked != own and (name, own) != ("classes", None):
            raise RefusedError(f"data.{name} is {asked} in the run and {own} in the site file")


def _refuse_settings(settings: Settings, policy: SitePolicy) -> None:
    """Refuses a run with a setting that the site does not allow."""
    given = settings.model_dump(mode="json")
    for name, allowed in policy.allowed_settings.items():
        value: Any = given
        for part in name.split("."):
            value = value[part]
        if isinstance(allowed, Bounds):
            low = -math.inf if allowed.min is None else allowed.min
            high = math.inf if allowed.max is None else allowed.max
            fits, said = isinstance(value, int | float) and low <= value <= high, f"{low} to {high}"
        else:
            fits, said = value in allowed, ", ".join(map(str, allowed))
        if not fits:
            raise RefusedError(f"{name} is {value}; policy.allowed_settings allows {said}")


def _refuse_less_privacy(privacy: PrivacySettings, policy: SitePolicy) -> None:
    """Refuses a private run that protects less than the site's policy."""
    if privacy.secure_aggregation.enabled and not policy.shared_noise:
        raise RefusedError(
            "privacy.secure_aggregation.enabled is true; this site adds all of its noise itself "
            "unless its file says policy.shared_noise = true"
        )
    if policy.max_epsilon is not None and privacy.target_delta > policy.target_delta:
        raise RefusedError(
            f"privacy.target_delta {privacy.target_delta} is more than {policy.target_delta} here"
        )
    if policy.max_epsilon is not None and privacy.unit == "image":
        raise RefusedError(
            "policy.max_epsilon bounds what a patient spends; privacy.unit=image would charge a "
            "patient of several images for one"
        )
    noises = {
        "privacy.noise_multiplier": privacy.noise_multiplier,
        "privacy.release_noise": privacy.release_noise,
        "privacy.validation_noise": privacy.validation_noise,
    }
    for name, noise in noises.items():
        # The noise for a target of ε follows from the plan, which `PrivateTrainer` checks.
        if noise is not None and noise < (policy.min_noise_multiplier or 0.0):
            raise RefusedError(f"{name} is under {policy.min_noise_multiplier}")
