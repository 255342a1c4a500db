"""The trainer of runs with differential privacy: charges the ledger first, then answers.

Weights, moments, counts and sums that depend on a patient have noise. The size of a round is not
sent: neither the realised number of images nor the time taken.
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client import latent_cache
from client.privacy_budget import announce, charge, ledger_tip
from client.statistics import statistics_census
from client.trainer.base import Components, Metrics, Stage, StateDict, Trainer
from mediffusion_core.common.errors import RefusedError, UserError
from mediffusion_core.common.files import write_durably
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.dealing_record import (
    record_dealing,
    require_recorded_dealing,
)
from mediffusion_core.data.partitioning.keyed_dealing import UnitHash
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.evaluation.noised_validation import ValidationSums
from mediffusion_core.inference.classify import logits_of
from mediffusion_core.inference.joint_model import restore_autoencoder, restore_classifier
from mediffusion_core.models import Autoencoder, JointUNet
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.accounting.noisy_statistics import (
    NoisedCounts,
    noised_counts,
    noised_latent_sums,
)
from mediffusion_core.privacy.accounting.plan import Plan, refuse_dear_validation
from mediffusion_core.privacy.dp_sgd.autoencoder_stage import train_private_autoencoder
from mediffusion_core.privacy.dp_sgd.joint_stage import (
    freeze,
    private_joint_sums,
    train_private_joint,
    training_parts,
)
from mediffusion_core.privacy.dp_sgd.private_round import PrivateRound
from mediffusion_core.privacy.dp_sgd.randomness import secret_seed
from mediffusion_core.privacy.secure_aggregation.grid import Grid
from mediffusion_core.privacy.units import UnitIndex, numbered
from mediffusion_core.training.latents import Seed

PLAN, SUM = "privacy.json", "checksum"
CERTAIN = 3
"""Standard deviations above 0 from which on a site is taken to have labels."""


class PrivateTrainer(Trainer):
    """A site's answers with noise, each charged to the site's privacy ledger.

    A unit whose budget does not carry the charge of an answer is left out of that answer. The
    decision is made again with each charge, by the unit's own charges: the condition of the
    individual filter (arXiv 2008.11193). So a unit takes part until its budget is spent, a repeated
    round included, and a site whose units have all spent theirs answers as one without images.

    Every answer raises `UserError` if the settings promise too little to so few units.
    """

    def census(self) -> dict[str, int | list[int]]:
        """How many units the site trains on, and how many of them have a label, both with noise.

        Without training nothing, and no charge.
        """
        if self.site.settings.task == "statistics":
            return statistics_census(self.site)
        counts, _ = self._counted()
        return {"train": counts.units, "labelled": counts.labelled}

    def latent_sums(self, weights: StateDict) -> dict[str, Tensor]:
        """Sums with noise, over one image of each unit; see `Trainer.latent_sums`."""
        settings = self.site.settings
        autoencoder = restore_autoencoder(settings, weights)
        counts, plan = self._counted()
        index = self._charged(plan.statistics_charge, "latents", 1)
        return noised_latent_sums(
            autoencoder.to(self.site.device).eval(),
            self.site.dataset.train(self.site.index),
            index,
            counts.units,
            settings.privacy.release_noise,
        )

    def feature_sums(self) -> dict[str, Tensor]:
        """Refuses: the sums have no noise."""
        raise RefusedError("with privacy.enabled no sums over features leave")

    def encode(self, codec_weights: StateDict, whitening: StateDict | None) -> None:
        """Each random view comes from a secret seed of its image and its number alone."""
        unit_hash, image_ids = self._unit_hash, self.site.dataset.store.image_ids

        def seed_for(purpose: str, images: ImageSet) -> Seed:
            return lambda view, position: unit_hash.seed_of(
                image_ids[int(images.rows[position])], f"{purpose} {view}"
            )

        latent_cache.encode(self.site, codec_weights, seed_for)

    def validation_counts(
        self, unet: StateDict, head: StateDict, round_number: int
    ) -> dict[str, Tensor]:
        """Sums with noise, over one image of each validation unit.

        Returns:
            The arrays of `noised_validation.ValidationSums`.

        Raises:
            RefusedError: if the run has no noise for them: exact counts tell the scores of single
                patients.
        """
        site = self.site
        noise = site.settings.privacy.validation_noise
        if noise is None:
            raise RefusedError("without privacy.validation_noise no sums of validation units leave")
        self._counted()  # with all its checks
        images, multi_label = site.dataset.validation(site.index), site.dataset.store.multi_label
        # Whether these fail must not depend on how many units there are.
        joint = restore_classifier(site.settings, images.targets.shape[1], unet, head)
        latents = latent_cache.validation_latents(site)
        charged = charge(site, Charge(1.0, noise, 1), "validation", round_number, images)
        index = UnitIndex(*self._units(images, charged))
        chosen = index.draw_each()
        blank = torch.zeros(1, *latents.shape[1:], dtype=latents.dtype)
        read = torch.cat([latents[chosen], blank])
        logits = logits_of(site.settings, joint.to(site.device).eval(), read)[:-1]
        sums = ValidationSums.of(logits, images.targets[chosen], multi_label)
        return sums.noised(noise, multi_label).arrays()

    def ledger_tip(self) -> dict[str, Tensor]:
        """The ledger's tip after the answer."""
        return ledger_tip(self.site)

    def units(self, charged: Collection[str] | None = None) -> tuple[Tensor, list[str]]:
        """The privacy unit of each training image (n,), and the units' names.

        Args:
            charged: The patients or lesions whose units count; all by default. Units of others
                are numbered behind them.
        """
        return self._units(self.site.dataset.train(self.site.index), charged)

    def _units(self, images: ImageSet, charged: Collection[str] | None) -> tuple[Tensor, list[str]]:
        """The privacy unit of each image (n,), and the units' names; see `units`."""
        rows = images.rows
        patients = self.site.dataset.groups(rows)
        left_out = set() if charged is None else set(patients) - set(charged)
        if self.site.settings.privacy.unit == "image":
            names = [self.site.dataset.store.image_ids[row] for row in rows]
            behind = {name for name, one in zip(names, patients, strict=True) if one in left_out}
            return numbered(names, behind)
        return numbered(patients, left_out)

    @property
    def _unit_hash(self) -> UnitHash:
        unit_hash = self.site.dataset.unit_hash
        assert unit_hash is not None  # datasets of private runs have one
        return unit_hash

    def _charged(self, cost: Charge, stage: str, round_number: int) -> UnitIndex:
        """Charges an answer to the ledger; the index of the units that it may sample."""
        images = self.site.dataset.train(self.site.index)
        return UnitIndex(*self.units(charge(self.site, cost, stage, round_number, images)))

    def _train_autoencoder(
        self, autoencoder: Autoencoder, optimizer: torch.optim.AdamW, round_number: int
    ) -> Metrics:
        """Adam's moments are of noised gradients, so that they may leave as the weights do."""
        settings = self.site.settings
        _, plan = self._counted()
        steps = plan.steps("autoencoder", round_number)
        if steps:
            index = self._charged(plan.step_charge(steps), "autoencoder", round_number)
            train_private_autoencoder(
                autoencoder,
                optimizer,
                self.site.dataset.train(self.site.index),
                settings.training.autoencoder,
                settings.latent_shape,
                self._private_round(index, plan, "autoencoder", round_number),
            )
        return {"images_seen": steps * plan.expected_units, "labelled_seen": 0.0, "steps": steps}

    def _train_joint(
        self,
        joint: JointUNet,
        optimizer: torch.optim.AdamW,
        components: Components,
        round_number: int,
    ) -> tuple[dict[str, StateDict], Metrics]:
        """Moments leave as those of the autoencoder do."""
        settings = self.site.settings
        counts, plan = self._counted()
        steps = plan.steps("joint", round_number)
        if steps:
            latents = latent_cache.kept_latents(self.site)
            index = self._charged(plan.step_charge(steps), "joint", round_number)
            with training_parts(joint, optimizer, settings.training.joint, settings.privacy):
                train_private_joint(
                    joint,
                    optimizer,
                    latents,
                    settings.training.joint,
                    DiffusionProcess.of(settings.diffusion),
                    self._private_round(index, plan, "joint", round_number),
                )
        certain = counts.labelled > CERTAIN * counts.deviation
        labelled = counts.labelled * min(1.0, plan.sample_rate * steps) if certain else 0.0
        seen = {"images_seen": steps * plan.expected_units, "labelled_seen": labelled}
        return {}, {**seen, "steps": steps}

    def joint_sum(self, unet: StateDict, head: StateDict, round_number: int) -> NDArray[np.uint64]:
        """With the site's share of the noise: its part alone is not private, the sum is."""
        settings = self.site.settings
        _, plan = self._counted()
        joint = self._restored(unet, head)
        latents = latent_cache.kept_latents(self.site)
        index = self._charged(plan.step_charge(1), "joint", round_number)
        freeze(joint, settings.training.joint, settings.privacy)
        sums = private_joint_sums(
            joint,
            latents,
            settings.training.joint,
            DiffusionProcess.of(settings.diffusion),
            self._private_round(index, plan, "joint", round_number),
        )
        total = torch.cat([sums[f"head.{name}"].flatten().double() for name in sorted(head)])
        bound = settings.privacy.max_grad_norm
        return Grid(bound, plan.noise_multiplier, settings.counted_sites).noised(total)

    def _private_round(
        self, index: UnitIndex, plan: Plan, stage: Stage, number: int
    ) -> PrivateRound:
        """Units, mechanism and steps of a round of a stage."""
        return PrivateRound(
            index=index,
            mechanism=plan.mechanism(),
            privacy=self.site.settings.privacy,
            steps=plan.steps(stage, number),
            current=self._local_round(stage, number, secret_seed()),
        )

    def _counted(self) -> tuple[NoisedCounts, Plan]:
        """The site's noised counts, and the plan that follows from them.

        Raises:
            RefusedError: if the site's policy demands more noise than the run's target of ε needs.
        """
        counts, plan = self._planned()
        least = self.site.policy.min_noise_multiplier
        if least is not None and plan.noise_multiplier < least:
            raise RefusedError(
                f"privacy.target_epsilon leads to a noise multiplier of "
                f"{plan.noise_multiplier:.3g}, which is under {least:g}"
            )
        return counts, plan

    def _planned(self) -> tuple[NoisedCounts, Plan]:
        """Counts and plan, which are drawn, charged and kept once a run."""
        site = self.site
        path = site.folder / PLAN
        if path.is_file():
            require_recorded_dealing(site.folder, self._unit_hash)
            kept = _read_plan(path)
            counts = NoisedCounts(**kept["counts"])
            return counts, Plan.of(site.settings, counts.units, kept["noise_multiplier"])
        refuse_dear_validation(site.settings)
        record_dealing(site.folder, self._unit_hash)
        noise = site.settings.privacy.release_noise
        shared = None
        if site.settings.privacy.secure_aggregation.enabled:  # σ follows from the settings alone
            announced = Plan.of(site.settings, 1)
            announce(site, announced.charges())
            shared = announced.noise_multiplier
        index = self._charged(Charge(1.0, noise, 1), "census", 0)
        labelled = index.subset(site.dataset.train(site.index).labelled).counts.count_nonzero()
        counts = noised_counts(len(index.names), int(labelled), noise)
        plan = Plan.of(site.settings, counts.units, shared)
        kept = {"counts": asdict(counts), "noise_multiplier": plan.noise_multiplier}
        write_durably(path, json.dumps({**kept, SUM: fingerprint(**kept)}).encode())
        return counts, plan


def _read_plan(path: Path) -> dict[str, Any]:
    """Counts and noise of the run, as they were written."""
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        if kept.pop(SUM) != fingerprint(**kept):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is damaged; remove it to let the run count the site anew, which is charged to "
            "the ledger again"
        ) from None
    return kept
