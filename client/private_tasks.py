"""What a site does where its patients are protected: charge the ledger first, then answer.

Everything that depends on a patient and leaves is noised here; what a round's size would tell, such
as the realised number of images or the time taken, is not sent.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client import latent_cache
from client.privacy_budget import charge
from client.site import Site
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import replacing
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import Autoencoder, JointUNet
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.accounting.noisy_statistics import (
    NoisedCounts,
    noised_counts,
    noised_latent_sums,
)
from mediffusion_core.privacy.accounting.plan import AUTOENCODER, JOINT, Plan
from mediffusion_core.privacy.dp_sgd.autoencoder_stage import train_private_autoencoder
from mediffusion_core.privacy.dp_sgd.joint_stage import train_private_joint, training_parts
from mediffusion_core.privacy.dp_sgd.private_round import PrivateRound
from mediffusion_core.privacy.dp_sgd.randomness import secret_seed
from mediffusion_core.privacy.units import UnitIndex, numbered
from mediffusion_core.training.local_round import LocalRound

Metrics = dict[str, float]

PLAN, SUM = "privacy.json", "checksum"
CERTAIN = 3
"""Standard deviations above 0 from which on a site is taken to have labels."""


def census(site: Site) -> dict[str, int | list[int]]:
    """How many units the site trains on, and how many of them have a label, both with noise.

    Raises:
        UserError: if the settings promise too little to so few units.
        BudgetSpent: if the site's units have spent what they may.
    """
    counts, _ = _counted(site)
    return {"train": counts.units, "labelled": counts.labelled}


def autoencoder_round(
    site: Site, autoencoder: Autoencoder, optimizer: torch.optim.AdamW, round_number: int
) -> Metrics:
    """One private round of the autoencoder stage, in place; see `tasks.autoencoder_round`.

    Adam's moments are of noised gradients, so that they may leave as the weights do.
    """
    settings = site.settings
    _, plan = _counted(site)
    steps = plan.steps(AUTOENCODER, round_number)
    if steps:
        charge(site, plan.step_charge(steps), AUTOENCODER, round_number)
        train_private_autoencoder(
            autoencoder,
            optimizer,
            site.dataset.train(site.index),
            settings.training.autoencoder,
            settings.latent_shape,
            _private_round(site, plan, AUTOENCODER, round_number, settings.autoencoder_rounds),
        )
    return {"images_seen": steps * plan.expected_units, "labelled_seen": 0.0, "steps": steps}


def latent_sums(site: Site, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the site's latents with noise; see `encoding.latent_sums`."""
    autoencoder = Autoencoder(site.settings.model.autoencoder, site.settings.data.channels)
    autoencoder.load_state_dict(dict(weights))
    counts, plan = _counted(site)
    charge(site, plan.statistics_charge, "latents", 1)
    unit_of, count = _units(site)
    return noised_latent_sums(
        autoencoder.to(site.device).eval(),
        site.dataset.train(site.index),
        UnitIndex(unit_of, count),
        counts.units,
        site.settings.privacy.release_noise,
        torch.Generator().manual_seed(secret_seed()),
    )


def joint_round(
    site: Site, joint: JointUNet, optimizer: torch.optim.AdamW, round_number: int
) -> Metrics:
    """One private round of the joint stage, in place; see `tasks.joint_round`.

    Moments leave as those of the autoencoder do.
    """
    settings = site.settings
    counts, plan = _counted(site)
    steps = plan.steps(JOINT, round_number)
    if steps:
        latents = latent_cache.kept_latents(site)
        charge(site, plan.step_charge(steps), JOINT, round_number)
        with training_parts(joint, optimizer, settings.training.joint, settings.privacy):
            train_private_joint(
                joint,
                optimizer,
                latents,
                settings.training.joint,
                DiffusionProcess.of(settings.diffusion),
                _private_round(site, plan, JOINT, round_number, settings.federation.num_rounds),
            )
    certain = counts.labelled > CERTAIN * counts.deviation
    seen = counts.labelled * min(1.0, plan.sample_rate * steps) if certain else 0.0
    return {"images_seen": steps * plan.expected_units, "labelled_seen": seen, "steps": steps}


def _private_round(
    site: Site, plan: Plan, stage: str, round_number: int, rounds: int
) -> PrivateRound:
    """Units, mechanism and steps of a round of a stage."""
    return PrivateRound(
        index=UnitIndex(*_units(site)),
        mechanism=plan.mechanism(),
        privacy=site.settings.privacy,
        steps=plan.steps(stage, round_number),
        current=LocalRound(
            round_number, rounds, secret_seed(), on_step=site.progress(stage, round_number)
        ),
    )


def _units(site: Site) -> tuple[Tensor, int]:
    """The unit of each training image (n,), and how many units there are."""
    rows = site.dataset.train(site.index).rows
    if site.settings.privacy.unit == "patient":
        return numbered(site.dataset.groups(rows))
    return numbered(rows.tolist())


def _counted(site: Site) -> tuple[NoisedCounts, Plan]:
    """The site's noised counts and what follows from them: drawn, paid for and kept once a run."""
    path = site.folder / PLAN
    if path.is_file():
        kept = _read_plan(path)
        counts = NoisedCounts(**kept["counts"])
        return counts, Plan.of(site.settings, counts.units, kept["noise_multiplier"])
    unit_of, count = _units(site)
    labelled = len(set(unit_of[site.dataset.train(site.index).labelled].tolist()))
    noise = site.settings.privacy.release_noise
    charge(site, Charge(1.0, noise, 1), "census", 0)
    counts = noised_counts(count, labelled, noise)
    plan = Plan.of(site.settings, counts.units)
    kept = {"counts": asdict(counts), "noise_multiplier": plan.noise_multiplier}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**kept, SUM: fingerprint(**kept)}))
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
