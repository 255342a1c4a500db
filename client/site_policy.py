"""The images of a deployed site, and the limits that its site file sets for a run."""

from dataclasses import replace
from pathlib import Path

from mediffusion_core.common.errors import RefusedError, UserError
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.messaging.protocol import WEIGHTED_BY
from mediffusion_core.privacy.ledger.site_ledger import ledger_places
from mediffusion_core.settings import Settings
from mediffusion_core.settings.site_file import SiteFile


def open_own(settings: Settings, path: Path) -> tuple[Settings, FederatedDataset, frozenset[str]]:
    """Opens the images of a site file, prepared and split by the run's settings.

    The site file sets where the images lie and how they are read. The run sets their size, the
    shares of the splits and the classes.

    Args:
        settings: Of the run.
        path: The site file.

    Returns:
        The run's settings with the site's device, ledger and limit of ε; the images as those of
        the only site; and the metrics that may leave.

    Raises:
        RefusedError: if the run asks for more than the site agrees to.
        UserError: if the site file is wrong, or its images have not the run's classes in the
            run's order, so that outputs of the classifier would mean other findings.
    """
    file = SiteFile.read(path)
    agreed = _agreed(settings, file)
    classes = settings.data.classes
    if classes is None:
        raise UserError("a run on the sites' own images needs data.classes")
    if file.data.multi_label != settings.data.multi_label:
        raise UserError(f"data.multi_label is {settings.data.multi_label} in the run, not here")
    # A real site is not dealt by the run's partition.
    one_place = {
        "partition": "uniform",
        "splits": "dealt",
        "scanner_shift": 0.0,
        "labels_at": "sites",
        "labelled_sites": None,
        "labelled_fraction_by_site": {},
    }
    read = file.data_settings(settings.data.image_size, settings.data.channels)
    described = {name: getattr(read, name) for name in type(file.data).model_fields}
    data = settings.data.model_copy(update={**described, "classes": classes, **one_place})
    one_site = {"num_sites": 1, "pool_sites": False, "only_site": None}
    federation = settings.federation.model_copy(update=one_site)
    own = settings.model_copy(update={"data": data, "federation": federation})
    dataset = open_federated_dataset(own)
    if dataset.store.classes != classes:
        held, wanted = ", ".join(dataset.store.classes), ", ".join(classes)
        raise UserError(f"the images are of the classes {held}, the run is of {wanted}")
    (client,) = dataset.clients
    clients = (replace(client, site=file.name),)
    dataset = replace(dataset, clients=clients, centres=clients)
    return agreed, dataset, file.policy.allowed_metrics


def _agreed(settings: Settings, file: SiteFile) -> Settings:
    """The run's settings with the site's device and ledger, and within what the site agrees to."""
    policy, privacy = file.policy, settings.privacy
    weighing = {*WEIGHTED_BY.values()}
    if settings.federation.weighting == "steps":
        weighing.add("steps")
    if kept_back := weighing - policy.allowed_metrics:
        names = " and ".join(sorted(kept_back))
        raise RefusedError(f"policy.allowed_metrics lacks {names}, which weigh this site's reply")
    private = policy.max_epsilon is not None or policy.min_noise_multiplier is not None
    if private and not privacy.enabled:
        raise RefusedError("this site takes part in no run without differential privacy")
    if policy.max_epsilon is not None and privacy.target_delta > policy.target_delta:
        raise RefusedError(
            f"privacy.target_delta {privacy.target_delta} is more than {policy.target_delta} here"
        )
    if policy.max_epsilon is not None and privacy.unit == "image":
        raise RefusedError(
            "policy.max_epsilon bounds what a patient spends; privacy.unit=image would charge a "
            "patient of several images for one"
        )
    # With a target of ε the site would have to take whatever noise leads there.
    noises = {
        "privacy.noise_multiplier": privacy.noise_multiplier or 0.0,
        "privacy.release_noise": privacy.release_noise,
    }
    for name, noise in noises.items():
        if noise < (policy.min_noise_multiplier or 0.0):
            raise RefusedError(f"{name} is under {policy.min_noise_multiplier}")
    limits = [limit for limit in (policy.max_epsilon, privacy.max_epsilon) if limit is not None]
    places = dict(zip(("folder", "head"), ledger_places(file), strict=True))
    for name, place in places.items():
        if place.name != file.name:
            raise UserError(f"ledger.{name} {place} must end in the site's name, {file.name}")
    own = {
        "ledger": places["folder"].parent,
        "ledger_heads": places["head"].parent,
        "max_epsilon": min(limits, default=None),
    }
    return settings.model_copy(
        update={"device": policy.device, "privacy": privacy.model_copy(update=own)}
    )
