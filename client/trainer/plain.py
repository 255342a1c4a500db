"""The trainer of runs without differential privacy: sums, counts and weights leave exactly."""

import time

import torch
from torch import Tensor

from client import latent_cache
from client.model_evaluation import EvaluatedImages
from client.statistics import statistics_census
from client.trainer.base import Components, Metrics, Stage, StateDict, Trainer
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
from mediffusion_core.inference.classify import logits_of
from mediffusion_core.inference.joint_model import restore_classifier
from mediffusion_core.messaging.protocol import (
    BOOTSTRAP_THRESHOLDS,
    CONTROLS,
    EMA_HEAD,
    EMA_UNET,
    HEAD,
    LABEL_COUNTS,
    UNET,
)
from mediffusion_core.models import Autoencoder, JointUNet
from mediffusion_core.training.autoencoder import train_autoencoder
from mediffusion_core.training.auxiliary import Auxiliary
from mediffusion_core.training.fedbn import with_own
from mediffusion_core.training.joint import train_joint
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.local_report import LocalReport
from mediffusion_core.training.local_round import LocalRound
from mediffusion_core.training.scaffold import ControlVariate


class PlainTrainer(Trainer):
    """A site's answers without noise."""

    def census(self) -> dict[str, int | list[int]]:
        """How many images, patients and labels the site holds; no more is ever asked.

        Where the joint objective needs the prevalence of findings, which may be known of some
        images only, `known_per_class` says of how many. An evaluation needs the numbers of
        evaluated images and patients alone, and statistics those of all.

        Raises:
            RefusedError: as `EvaluatedImages.of` and `statistics_census`.
        """
        site = self.site
        if site.settings.task == "evaluation":
            return EvaluatedImages.of(site).census()
        if site.settings.task == "statistics":
            return statistics_census(site)
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

    def latent_sums(self, weights: StateDict) -> dict[str, Tensor]:
        """Exact sums; see `Trainer.latent_sums`."""
        return latent_cache.latent_sums(self.site, weights)

    def feature_sums(self) -> dict[str, Tensor]:
        """Exact sums, in a run with alignment; see `Trainer.feature_sums`."""
        if not self.site.settings.training.joint.alignment.enabled:
            raise RefusedError("without training.joint.alignment no sums over features leave")
        return latent_cache.feature_sums(self.site)

    def encode(self, codec_weights: StateDict, whitening: StateDict | None) -> None:
        """Random views come from the run's seed, so that a second run encodes the same."""
        latent_cache.encode(
            self.site, codec_weights, lambda purpose, images: self._seed(purpose), whitening
        )

    def validation_counts(
        self, unet: StateDict, head: StateDict, round_number: int
    ) -> dict[str, Tensor]:
        """Exact counts, with the site's own normalisation; see `Trainer.validation_counts`."""
        site = self.site
        evaluation, multi_label = site.settings.evaluation, site.dataset.store.multi_label
        images = site.dataset.validation(site.index)
        unet = with_own(unet, self._own_normalisation(round_number + 1))
        joint = restore_classifier(site.settings, images.targets.shape[1], unet, head)
        latents = latent_cache.validation_latents(site)
        logits = images.targets  # (0, C) where the site has no labelled validation patients
        if len(images):
            logits = logits_of(site.settings, joint.to(site.device).eval(), latents)
        scores = class_scores(logits, multi_label)
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
                self._seed("bootstrap"),
            ),
            "temperature_losses": temperature_losses(logits, images.targets, multi_label),
        }

    def ledger_tip(self) -> dict[str, Tensor]:
        """Nothing: a run without differential privacy charges no ledger."""
        return {}

    def _train_autoencoder(
        self, autoencoder: Autoencoder, optimizer: torch.optim.AdamW, round_number: int
    ) -> Metrics:
        begun = time.perf_counter()
        report = train_autoencoder(
            autoencoder,
            optimizer,
            self.site.dataset.train(self.site.index),
            self.site.settings.training.autoencoder,
            self._seeded_round("autoencoder", round_number),
        )
        return _metrics(report, begun)

    def _train_joint(
        self,
        joint: JointUNet,
        optimizer: torch.optim.AdamW,
        components: Components,
        round_number: int,
    ) -> tuple[dict[str, StateDict], Metrics]:
        settings = self.site.settings
        wanted = settings.training.joint
        average = (EMA_UNET, EMA_HEAD)
        teacher = (
            self._restored(*(components[name] for name in average))
            if wanted.needs_average
            else None
        )
        counts = components[LABEL_COUNTS] if wanted.needs_label_counts else None
        controls = _controls(joint, components) if wanted.control_variates else {}
        begun = time.perf_counter()
        report = train_joint(
            joint,
            optimizer,
            latent_cache.kept_latents(self.site),
            wanted,
            DiffusionProcess.of(settings.diffusion),
            self._seeded_round("joint", round_number),
            Auxiliary(
                LabelCounts.of_arrays(counts) if counts else None,
                teacher,
                list(controls.values()),
            ),
        )
        gradients = {name: control.mean_gradient() for name, control in controls.items()}
        return {**gradients}, _metrics(report, begun)

    def _seed(self, *purpose: str | int) -> int:
        """A seed that the run's seed and the site's name determine."""
        first, *others = purpose
        return derive_seed(self.site.settings.seed, first, self.site.name, *others)

    def _seeded_round(self, stage: Stage, number: int) -> LocalRound:
        precision = self.site.settings.training.precision
        return self._local_round(stage, number, self._seed(stage, number), precision)


def _controls(joint: JointUNet, components: Components) -> dict[str, ControlVariate]:
    """Control variates of UNet and head, by record."""
    unet, head = (components.get(CONTROLS[component], {}) for component in (UNET, HEAD))
    return {
        CONTROLS[UNET]: ControlVariate(joint.unet, unet),
        CONTROLS[HEAD]: ControlVariate(joint.head, head),
    }


def _metrics(report: LocalReport, begun: float) -> Metrics:
    counts = {"images_seen": report.images_seen, "labelled_seen": report.labelled_seen}
    seconds = time.perf_counter() - begun
    return {**counts, "steps": report.steps, "seconds": seconds, **report.means()}
