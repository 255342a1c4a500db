"""The base of plain and private trainers: restored networks, returned components."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site import Site, site_log
from mediffusion_core.common.errors import RefusedError
from mediffusion_core.inference.joint_model import restore_autoencoder, restore_joint
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODER_MOMENTS,
    CONTROLS,
    EMA_UNET,
    HEAD,
    HEAD_MOMENTS,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.models import Autoencoder, JointUNet
from mediffusion_core.training.adam_moments import load_moments, read_moments
from mediffusion_core.training.autoencoder import autoencoder_optimizer
from mediffusion_core.training.fedbn import keep_own, normalisation_names, own_before, with_own
from mediffusion_core.training.joint import joint_optimizer
from mediffusion_core.training.local_round import LocalRound

StateDict = Mapping[str, Tensor]
Components = Mapping[str, StateDict]
Metrics = dict[str, float]
Stage = Literal["autoencoder", "joint"]


@dataclass(frozen=True)
class Trainer(ABC):
    """One site's answers to the server's messages.

    Attributes:
        site: Whose images, labels and folder.
    """

    site: Site

    @abstractmethod
    def census(self) -> dict[str, int | list[int]]:
        """Counts of the site's images, patients and labels."""

    @abstractmethod
    def latent_sums(self, weights: StateDict) -> dict[str, Tensor]:
        """Sums over the latents of the site's training images.

        Args:
            weights: Of the autoencoder.

        Returns:
            `total` (c,) and `squares` (c,) per latent channel, and their `count` (1,).
        """

    @abstractmethod
    def feature_sums(self) -> dict[str, Tensor]:
        """Sums over a public encoder's features of the site's training images.

        Returns:
            The arrays of `models.whitening.FeatureSums`; with distillation also those of
            `models.class_means.ClassSums`.

        Raises:
            RefusedError: if no such sums may leave.
        """

    @abstractmethod
    def encode(self, codec_weights: StateDict, whitening: StateDict | None) -> None:
        """Encodes the site's images and keeps the latents in its folder.

        Args:
            codec_weights: Of the autoencoder with the latent scale.
            whitening: Of a public encoder's features, where the run aligns with them.
        """

    @abstractmethod
    def validation_counts(
        self, unet: StateDict, head: StateDict, round_number: int
    ) -> dict[str, Tensor]:
        """Sums over the site's validation patients, for the pooled AUC and the temperature.

        They are of the global model after the given round of the joint stage.

        Returns:
            Sums to be added up over sites. Without privacy confusion `counts` (C, T, 2, 2),
            `bootstraps` of them (B, C, T', 2, 2) and `temperature_losses` (K,).

        Raises:
            RefusedError: if no counts may leave.
        """

    @abstractmethod
    def ledger_tip(self) -> dict[str, Tensor]:
        """The tip of the privacy ledger, which every reply carries; empty without a ledger."""

    @abstractmethod
    def _train_autoencoder(
        self, autoencoder: Autoencoder, optimizer: torch.optim.AdamW, round_number: int
    ) -> Metrics:
        """Trains the autoencoder in place for one round."""

    @abstractmethod
    def _train_joint(
        self,
        joint: JointUNet,
        optimizer: torch.optim.AdamW,
        components: Components,
        round_number: int,
    ) -> tuple[dict[str, StateDict], Metrics]:
        """Trains the joint network in place for one round.

        Returns:
            Components beside those of `protocol.JOINT`, and metrics with the number of `steps`.
        """

    def autoencoder_round(
        self, components: Components, round_number: int
    ) -> tuple[dict[str, StateDict], Metrics]:
        """One round of the autoencoder stage on all of the site's images.

        Args:
            components: Weights and moments, those of `protocol.AUTOENCODING`.
            round_number: Of the stage, from 1.

        Returns:
            The same after the round, and metrics.
        """
        settings = self.site.settings
        autoencoder = restore_autoencoder(settings, components[AUTOENCODER]).to(self.site.device)
        optimizer = autoencoder_optimizer(autoencoder, settings.training.autoencoder)
        load_moments(optimizer, autoencoder, components[AUTOENCODER_MOMENTS])
        metrics = self._train_autoencoder(autoencoder, optimizer, round_number)
        trained: dict[str, StateDict] = {
            AUTOENCODER: autoencoder.state_dict(),
            AUTOENCODER_MOMENTS: read_moments(optimizer, autoencoder),
        }
        return trained, metrics

    def joint_sum(self, unet: StateDict, head: StateDict, round_number: int) -> NDArray[np.uint64]:
        """The site's part of a sum of clipped gradients, for secure aggregation.

        Returns:
            Σ clip(g_i) over the site's units and the site's share of the noise, over all parameters
            of the head in the order of their names (d,), as whole steps of a `Grid`.

        Raises:
            RefusedError: in a run without privacy.
        """
        raise RefusedError("without privacy.enabled no sums of gradients leave")

    def joint_round(
        self, components: Components, round_number: int
    ) -> tuple[dict[str, StateDict], Metrics]:
        """One round of the joint stage on the site's latents.

        Args:
            components: Weights and moments, those of `protocol.JOINT`. Where the settings need them
                `protocol.LABEL_COUNTS`, `protocol.EMA_UNET` and `protocol.EMA_HEAD`; with control
                variates those of `protocol.CONTROLS`, as far as the site has taken part before.
            round_number: Of the joint stage, from 1.

        Returns:
            Those of `protocol.JOINT` after the round, with control variates the mean gradients, and
            metrics.
        """
        settings = self.site.settings
        components = self._with_own_normalisation(components, round_number)
        joint = self._restored(components[UNET], components[HEAD])
        optimizer = joint_optimizer(joint, settings.training.joint)
        load_moments(optimizer, joint.unet, components[UNET_MOMENTS])
        load_moments(optimizer, joint.head, components[HEAD_MOMENTS])
        others, metrics = self._train_joint(joint, optimizer, components, round_number)
        trained: dict[str, StateDict] = {
            UNET: joint.unet.state_dict(),
            HEAD: joint.head.state_dict(),
            UNET_MOMENTS: read_moments(optimizer, joint.unet),
            HEAD_MOMENTS: read_moments(optimizer, joint.head),
        }
        if settings.federation.local_normalisation and metrics["steps"]:
            values = {**trained[UNET], **trained[UNET_MOMENTS]}
            names = normalisation_names(joint.unet)
            own = {name: values[name] for name in names}
            keep_own(self.site.folder, round_number, own, settings.run.keep_last)
        return trained | others, metrics

    def _restored(self, unet: StateDict, head: StateDict) -> JointUNet:
        """The joint network with these weights, on the site's device."""
        classes = len(self.site.dataset.store.classes)
        return restore_joint(self.site.settings, classes, unet, head).to(self.site.device)

    def _local_round(
        self, stage: Stage, number: int, seed: int, precision: str = "fp32"
    ) -> LocalRound:
        settings = self.site.settings
        rounds = settings.federation.num_rounds if stage == "joint" else settings.autoencoder_rounds
        return LocalRound(number, rounds, seed, precision, self.site.progress(stage, number))

    def _own_normalisation(self, round_number: int) -> dict[str, Tensor]:
        """The site's own normalisation and its moments before a round; empty if it keeps none."""
        if not self.site.settings.federation.local_normalisation:
            return {}
        return own_before(self.site.folder, round_number, site_log(self.site.folder).warning)

    def _with_own_normalisation(
        self, components: Components, round_number: int
    ) -> dict[str, StateDict]:
        """Components with the site's own normalisation in the place of the global one."""
        own = self._own_normalisation(round_number)
        received = dict(components)
        for name in {UNET, UNET_MOMENTS, EMA_UNET} & received.keys():
            received[name] = with_own(received[name], own)
        if CONTROLS[UNET] in received:  # own parameters are not averaged: no correction
            control = received[CONTROLS[UNET]]
            received[CONTROLS[UNET]] = {n: value for n, value in control.items() if n not in own}
        return received
