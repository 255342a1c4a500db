"""What a site does for each kind of message. Only sums, counts and weights are returned."""

import time
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from client import latent_cache, private_tasks
from client.latent_cache import kept_latents, validation_latents
from client.site import Site
from mediffusion_core.common.errors import RefusedError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.evaluation.calibration import temperature_losses
from mediffusion_core.evaluation.classification import (
    bootstrap_counts,
    class_scores,
    logit_thresholds,
    threshold_counts,
)
from mediffusion_core.inference.joint_model import logits_of, restore_classifier, restore_joint
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODER_MOMENTS,
    BOOTSTRAP_THRESHOLDS,
    CONTROLS,
    EMA_HEAD,
    EMA_UNET,
    HEAD,
    HEAD_MOMENTS,
    LABEL_COUNTS,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.models import Autoencoder, JointUNet
from mediffusion_core.training.adam_moments import load_moments, read_moments
from mediffusion_core.training.autoencoder import autoencoder_optimizer, train_autoencoder
from mediffusion_core.training.auxiliary import Auxiliary
from mediffusion_core.training.fedbn import keep_own, normalisation_names, own_before, with_own
from mediffusion_core.training.joint import joint_optimizer, train_joint
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.local_report import LocalReport
from mediffusion_core.training.local_round import LocalRound
from mediffusion_core.training.scaffold import ControlVariate

StateDict = Mapping[str, Tensor]
Metrics = dict[str, float]


def census(site: Site) -> dict[str, int | list[int]]:
    """How many images, patients and labels the site holds; no more is ever asked.

    Where the joint objective needs the prevalence of findings, which may be known of some images
    only, `known_per_class` says of how many. With differential privacy two counts leave, noised.
    """
    if site.settings.privacy.enabled:
        return private_tasks.census(site)
    client = site.dataset.clients[site.index]
    train = site.dataset.train(site.index)
    known = [int(count) for count in (~train.targets.isnan()).sum(dim=0)]
    needed = site.settings.training.joint.needs_label_counts
    return {
        "images": len(client.rows),
        "train": len(train),
        "labelled": len(train.labelled),
        "validation": len(site.dataset.validation(site.index)),
        "test": len(client.test),
        "patients": len(set(site.dataset.groups(client.rows))),
        "per_class": [int(count) for count in (train.targets == 1).sum(dim=0)],
        **({"known_per_class": known} if needed else {}),
    }


def latent_sums(site: Site, weights: StateDict) -> dict[str, Tensor]:
    """Sums over the site's latents; with differential privacy they have noise."""
    if site.settings.privacy.enabled:
        return private_tasks.latent_sums(site, weights)
    return latent_cache.latent_sums(site, weights)


def autoencoder_round(
    site: Site, components: Mapping[str, StateDict], round_number: int
) -> tuple[dict[str, StateDict], Metrics]:
    """One round of the autoencoder stage on all of the site's images.

    Args:
        site: Whose images.
        components: Weights and moments, those of `protocol.AUTOENCODING`.
        round_number: Of the stage, from 1.

    Returns:
        The same after the round, and metrics.
    """
    settings = site.settings
    autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
    autoencoder.load_state_dict(dict(components[AUTOENCODER]))
    autoencoder.to(site.device)
    optimizer = autoencoder_optimizer(autoencoder, settings.training.autoencoder)
    load_moments(optimizer, autoencoder, components[AUTOENCODER_MOMENTS])
    if settings.privacy.enabled:
        metrics = private_tasks.autoencoder_round(site, autoencoder, optimizer, round_number)
    else:
        begun = time.perf_counter()
        report = train_autoencoder(
            autoencoder,
            optimizer,
            site.dataset.train(site.index),
            settings.training.autoencoder,
            _local_round(site, "autoencoder", round_number),
        )
        metrics = _metrics(report, begun)
    trained: dict[str, StateDict] = {
        AUTOENCODER: autoencoder.state_dict(),
        AUTOENCODER_MOMENTS: read_moments(optimizer, autoencoder),
    }
    return trained, metrics


def joint_round(
    site: Site, components: Mapping[str, StateDict], round_number: int
) -> tuple[dict[str, StateDict], Metrics]:
    """One round of the joint stage on the site's latents.

    Args:
        site: Whose latents and labels.
        components: Weights and moments, those of `protocol.JOINT`. Where the settings need them
            `protocol.LABEL_COUNTS`, `protocol.EMA_UNET` and `protocol.EMA_HEAD`; with control
            variates those of `protocol.CONTROLS`, as far as the site has taken part before.
        round_number: Of the joint stage, from 1.

    Returns:
        Those of `protocol.JOINT` after the round, with control variates the mean gradients, and
        metrics.
    """
    settings = site.settings
    classes = len(site.dataset.store.classes)
    own = _own(site, round_number)
    unet = with_own(components[UNET], own)
    joint = restore_joint(settings, classes, unet, components[HEAD])
    joint.to(site.device)
    optimizer = joint_optimizer(joint, settings.training.joint)
    load_moments(optimizer, joint.unet, with_own(components[UNET_MOMENTS], own))
    load_moments(optimizer, joint.head, components[HEAD_MOMENTS])
    wanted = settings.training.joint
    teacher = None
    if wanted.needs_average:
        average = with_own(components[EMA_UNET], own), components[EMA_HEAD]
        teacher = restore_joint(settings, classes, *average).to(site.device)
    counts = components[LABEL_COUNTS] if wanted.needs_label_counts else None
    controls = _controls(site, joint, components, own)
    if settings.privacy.enabled:
        metrics = private_tasks.joint_round(site, joint, optimizer, round_number)
    else:
        begun = time.perf_counter()
        report = train_joint(
            joint,
            optimizer,
            kept_latents(site),
            wanted,
            DiffusionProcess.of(settings.diffusion),
            _local_round(site, "joint", round_number),
            Auxiliary(
                LabelCounts.of_arrays(counts) if counts else None,
                teacher,
                list(controls.values()),
            ),
        )
        metrics = _metrics(report, begun)
    trained: dict[str, StateDict] = {
        UNET: joint.unet.state_dict(),
        HEAD: joint.head.state_dict(),
        UNET_MOMENTS: read_moments(optimizer, joint.unet),
        HEAD_MOMENTS: read_moments(optimizer, joint.head),
    }
    if settings.federation.local_normalisation and metrics["steps"]:
        values = {**trained[UNET], **trained[UNET_MOMENTS]}
        names = normalisation_names(joint.unet)
        keep_own(site.folder, round_number, {name: values[name] for name in names})
    trained |= {name: control.mean_gradient() for name, control in controls.items()}
    return trained, metrics


def _local_round(site: Site, stage: Literal["autoencoder", "joint"], number: int) -> LocalRound:
    settings = site.settings
    federation = settings.federation
    rounds = federation.num_rounds if stage == "joint" else federation.autoencoder_rounds
    seed = derive_seed(settings.seed, stage, site.name, number)
    precision = settings.training.precision
    return LocalRound(number, rounds, seed, precision, site.progress(stage, number))


def _controls(
    site: Site, joint: JointUNet, components: Mapping[str, StateDict], own: StateDict
) -> dict[str, ControlVariate]:
    """What corrects the gradients of UNet and head, by record; nothing where that is not asked."""
    if not site.settings.training.joint.control_variates:
        return {}
    unet, head = (components.get(CONTROLS[component], {}) for component in (UNET, HEAD))
    # What is the site's own follows the site's own gradients.
    shared = {name: value for name, value in unet.items() if name not in own}
    return {
        CONTROLS[UNET]: ControlVariate(joint.unet, shared),
        CONTROLS[HEAD]: ControlVariate(joint.head, head),
    }


def _own(site: Site, round_number: int) -> dict[str, Tensor]:
    """The site's own normalisation and its moments before a round; empty where it keeps none."""
    if not site.settings.federation.local_normalisation:
        return {}
    return own_before(site.folder, round_number)


def validation_counts(
    site: Site, unet: StateDict, head: StateDict, round_number: int
) -> dict[str, Tensor]:
    """Sums over the site's validation patients, for the pooled AUC and the temperature.

    They are of the global model after the given round of the joint stage, with the site's own
    normalisation where it keeps one.

    Returns:
        Confusion `counts` (C, T, 2, 2), `bootstraps` of them (B, C, T', 2, 2) and
        `temperature_losses` (K,), to be added up over sites.

    Raises:
        RefusedError: with differential privacy: counts tell the scores of single patients.
    """
    if site.settings.privacy.enabled:
        raise RefusedError("with privacy.enabled no counts of validation patients leave")
    settings, multi_label = site.settings, site.dataset.store.multi_label
    images = site.dataset.validation(site.index)
    unet = with_own(unet, _own(site, round_number + 1))
    joint = restore_classifier(settings, images.targets.shape[1], unet, head)
    joint.to(site.device).eval()
    latents = validation_latents(site)
    logits = images.targets  # (0, C) where the site has no labelled validation patients
    if len(images):
        logits = logits_of(settings, joint, latents)
    scores = class_scores(logits, multi_label)
    evaluation = settings.evaluation
    return {
        "counts": threshold_counts(
            scores, images.targets, logit_thresholds(evaluation.num_thresholds)
        ),
        "bootstraps": bootstrap_counts(
            scores,
            images.targets,
            site.dataset.groups(images.rows),
            logit_thresholds(BOOTSTRAP_THRESHOLDS),
            evaluation.num_bootstraps,
            derive_seed(settings.seed, "bootstrap", site.name),
        ),
        "temperature_losses": temperature_losses(logits, images.targets, multi_label),
    }


def _metrics(report: LocalReport, begun: float) -> dict[str, float]:
    counts = {"images_seen": report.images_seen, "labelled_seen": report.labelled_seen}
    seconds = time.perf_counter() - begun
    return {**counts, "steps": report.steps, "seconds": seconds, **report.means()}
