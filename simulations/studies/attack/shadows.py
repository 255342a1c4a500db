"""LiRA on the classifier: shadow models of the joint network on other units (arXiv 2112.03570).

A shadow model learns to classify alone, on the latents of the attacked model's autoencoder, from
weights of its own. Each is kept in the run's folder when it is trained.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed, fingerprint
from mediffusion_core.data.augmentation import turns_and_flips
from mediffusion_core.data.image_set import ImageSet, joined
from mediffusion_core.evaluation.likelihood_ratio import (
    label_confidences,
    offline_scores,
    shadow_sets,
)
from mediffusion_core.evaluation.membership_inference import by_unit
from mediffusion_core.inference.classify import logits_of
from mediffusion_core.inference.joint_model import TrainedModel, build_joint
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import (
    AlignmentSettings,
    ConsistencySettings,
    JointTraining,
    Settings,
)
from mediffusion_core.training.joint import joint_optimizer, train_joint
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.local_round import LocalRound
from mediffusion_core.training.schedule import local_steps
from simulations.studies.attack.candidates import Candidates, Scored
from simulations.studies.attack.model_losses import told

SHADOW = "reader of the model: has its weights, and other labelled images for shadow models"
LIRA = "likelihood ratio"
FOLDER = "shadows"
MOST_STEPS = 400
"""Steps of a shadow model; fewer if the run made fewer."""


def shadow_attack(
    run: Path,
    model: TrainedModel,
    candidates: Candidates,
    settings: Settings,
    shadows: int,
    console: Console,
) -> dict[str, Scored]:
    """The attack by its name. Shadow models that were trained before are not trained again.

    Args:
        run: Folder of the run, where shadow models' confidences are kept.
        model: The selected model of the run.
        candidates: Members and non-members.
        settings: Of the run.
        shadows: Number of shadow models, at least 2.
        console: Shows the progress.

    Raises:
        UserError: for a single shadow model, which leaves units without any other.
    """
    if shadows < 2:
        raise UserError(f"--shadows {shadows}: allowed are 0, for no shadow models, and 2 or more")
    pool = _Pool.of(model, candidates.labelled())
    trained = sum(pool.is_member)
    inside = shadow_sets(len(pool.names), trained, shadows, derive_seed(settings.seed, "shadows"))
    training = _classification_alone(settings.training.joint)
    attacker = _Attacker(run / FOLDER, model, pool, training, _steps(settings, trained))
    confidences = []
    with told(console, "shadow models", shadows) as on_batch:
        for number in range(shadows):
            confidences.append(attacker.shadow(number, inside[number]))
            on_batch(1)
    scores = offline_scores(attacker.confidences(model), np.stack(confidences), inside)
    details = {"shadows": shadows, "shadow_units": int(inside[0].sum())}
    return {LIRA: pool.scored(scores, details)}


@dataclass(frozen=True)
class _Pool:
    """All candidates with a label: latents and labels of their images, and their units."""

    latents: Tensor
    """(n, c, h, w)."""
    targets: Tensor
    units: Sequence[str]
    """Of each image; a unit is one site's."""
    names: Sequence[str]
    """Of all units, sorted, as `by_unit` orders them."""
    is_member: Sequence[bool]
    """Of each unit."""
    sites: Sequence[str]

    @classmethod
    def of(cls, model: TrainedModel, candidates: Candidates) -> "_Pool":
        sets: list[ImageSet] = []
        units: list[str] = []
        member: dict[str, bool] = {}
        site_of: dict[str, str] = {}
        for is_member, part in ((True, candidates.members), (False, candidates.strangers)):
            for site, images in part.items():
                named = [f"{site}/{unit}" for unit in candidates.units(images)]
                member |= dict.fromkeys(named, is_member)
                site_of |= dict.fromkeys(named, site)
                sets.append(images)
                units += named
        images, names = joined(sets), sorted(member)
        latents = [model.encode(images.take(one)) for one in torch.arange(len(images)).split(128)]
        return cls(
            torch.cat(latents).cpu(),
            images.targets,
            units,
            names,
            [member[name] for name in names],
            [site_of[name] for name in names],
        )

    def scored(self, scores: NDArray[np.float64], details: dict[str, int]) -> Scored:
        """Scores (U,) of all units by membership and site."""
        members, strangers = (
            {
                site: scores[[i for i, own in enumerate(self.sites) if own == site and kept[i]]]
                for site in dict.fromkeys(self.sites)
            }
            for kept in (self.is_member, [not one for one in self.is_member])
        )
        return Scored(SHADOW, members, strangers, details)


@dataclass(frozen=True)
class _Attacker:
    """Trains shadow models, and asks models for their confidence in each unit."""

    folder: Path
    model: TrainedModel
    pool: _Pool
    training: JointTraining
    steps: int
    """Of each shadow model."""

    def confidences(self, model: TrainedModel) -> NDArray[np.float64]:
        """A model's mean confidence in the labels of each unit's images, (U,)."""
        logits = logits_of(model.settings, model.joint, self.pool.latents)
        found = label_confidences(logits, self.pool.targets, model.multi_label)
        return by_unit(found, self.pool.units)

    def shadow(self, number: int, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The confidences of one shadow model, trained on the units of `inside` (U,)."""
        units = [name for name, chosen in zip(self.pool.names, inside, strict=True) if chosen]
        settings = self.model.settings
        key = fingerprint(
            units=units,
            settings=settings.fingerprint(),
            training=self.training.model_dump(mode="json"),
            steps=self.steps,
        )
        path = self.folder / f"{number}-{key[:16]}.json"
        if path.is_file():
            return np.array(json.loads(path.read_text())["confidences"])
        found = self.confidences(
            self._trained(set(units), derive_seed(settings.seed, "shadow", number))
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"confidences": found.tolist()})
        return found

    def _trained(self, units: set[str], seed: int) -> TrainedModel:
        model, settings, pool = self.model, self.model.settings, self.pool
        chosen = torch.tensor([unit in units for unit in pool.units]).nonzero().flatten()
        torch.manual_seed(seed)
        joint = build_joint(settings, len(model.classes)).to(model.device)
        latents = pool.latents[chosen].half()
        turned = turns_and_flips(settings.data.augmentation)
        data = LatentSet(latents, latents[None], pool.targets[chosen], model.multi_label, turned)
        # Half a step less, since the number of steps is rounded up.
        epochs = (self.steps - 0.5) * self.training.batch_size / max(1, len(chosen))
        training = self.training.model_copy(update={"local_epochs": epochs})
        optimizer = joint_optimizer(joint, training)
        current = LocalRound(1, 1, seed, settings.training.precision)
        train_joint(joint, optimizer, data, training, model.process, current)
        return TrainedModel(settings, model.classes, model.multi_label, model.codec, joint)


def _classification_alone(wanted: JointTraining) -> JointTraining:
    """The run's training without all parts of the loss but the classification."""
    alone = {
        "diffusion_weight": 0.0,
        "logit_adjustment": 0.0,
        "consistency": ConsistencySettings(),
        "alignment": AlignmentSettings(),
        "control_variates": False,
        "proximal_weight": 0.0,
    }
    return wanted.model_copy(update=alone)


def _steps(settings: Settings, members: int) -> int:
    """As many steps as a site of the run made in the mean, at most `MOST_STEPS`."""
    wanted, rounds = settings.training.joint, settings.federation.num_rounds
    each = members // settings.num_participants
    made = rounds * local_steps(each, wanted.local_epochs, wanted.batch_size, 1)
    return max(1, min(MOST_STEPS, made))
