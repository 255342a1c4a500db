"""Attacks with the weights of the selected model: the losses of its two halves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.membership_inference import (
    AVERAGED,
    OnBatch,
    by_best_column,
    by_unit,
    classification_losses,
    diffusion_losses,
    timesteps_of,
)
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import Settings
from simulations.studies.attack.candidates import Candidates, Scored

READER = "reader of the model: has its weights"
DIFFUSION, TIMESTEP, CLASSIFICATION = (
    "diffusion loss",
    "diffusion loss at one timestep",
    "classification loss",
)


@contextmanager
def told(console: Console, title: str, total: int) -> Iterator[OnBatch]:
    """A progress bar; yields the function that takes how many images were done."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def model_attacks(
    model: TrainedModel, candidates: Candidates, settings: Settings, console: Console
) -> dict[str, Scored]:
    """The attacks by name, as far as the model was trained for them.

    Args:
        model: The selected model of a run.
        candidates: Members and non-members.
        settings: Of the run.
        console: Shows the progress.
    """
    attacks: dict[str, Scored] = {}
    if settings.training.joint.diffusion_weight:
        attacks |= _diffusion(model, candidates, settings.seed, console)
    if settings.training.joint.classification_weight:
        labelled = candidates.labelled()
        with told(console, "classification loss", len(labelled)) as on_batch:

            def losses(images: ImageSet) -> Tensor:
                return classification_losses(model, images, on_batch)

            attacks[CLASSIFICATION] = labelled.scored(
                READER, lambda images: by_unit(losses(images), labelled.units(images))
            )
    return attacks


def _diffusion(
    model: TrainedModel, candidates: Candidates, run_seed: int, console: Console
) -> dict[str, Scored]:
    seed = derive_seed(run_seed, "attack", "noise")
    with told(console, "diffusion loss", len(candidates)) as on_batch:

        def losses(images: ImageSet) -> Tensor:
            return diffusion_losses(model, images, seed, on_batch)

        every = candidates.scored(
            READER, lambda images: by_unit(losses(images), candidates.units(images))
        )
    mean = Scored(
        READER,
        {site: one[:, AVERAGED].mean(axis=1) for site, one in every.members.items()},
        {site: one[:, AVERAGED].mean(axis=1) for site, one in every.strangers.items()},
    )
    attacks = {DIFFUSION: mean}
    members, strangers = every.joined()
    if min(len(members), len(strangers)) > 1:
        attacks[TIMESTEP] = _at_best_timestep(every, timesteps_of(model), run_seed)
    return attacks


def _at_best_timestep(every: Scored, timesteps: list[int], run_seed: int) -> Scored:
    """The attack at the timestep that works best on half of the units, made on the other half."""
    members, strangers = every.joined()
    seed = derive_seed(run_seed, "attack", "halves")
    best, aucs, members, strangers = by_best_column(members, strangers, seed)
    details: Mapping[str, object] = {
        "timestep": timesteps[best],
        "auc_by_timestep_on_the_other_half": dict(
            zip(map(str, timesteps), np.round(aucs, 4).tolist(), strict=True)
        ),
    }
    return Scored(READER, {"all": members}, {"all": strangers}, details)
