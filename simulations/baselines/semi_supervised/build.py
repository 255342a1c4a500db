"""Makes the objective of each site and the server from the settings of a baseline."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet
from simulations.baselines.semi_supervised.cbafed import BalancedServer, CBAFed
from simulations.baselines.semi_supervised.fedirm import FedIRM, RelationServer
from simulations.baselines.semi_supervised.fixmatch import FixMatch
from simulations.baselines.semi_supervised.mean_teacher import MeanTeacher
from simulations.baselines.semi_supervised.objective import Objective
from simulations.baselines.semi_supervised.rscfed import ConsensusServer
from simulations.baselines.semi_supervised.server import Server
from simulations.baselines.semi_supervised.settings import (
    CBAFedSettings,
    ConsistencySettings,
    FedIRMSettings,
    RSCFedSettings,
)
from simulations.baselines.task import BaselineTask


def build_objective(task: BaselineTask, shares: Tensor) -> Objective | None:
    """A new objective for one site's unlabelled images; None where labels alone train.

    Args:
        task: Of the training.
        shares: Of each class among the labels of all sites, (C,).

    Raises:
        UserError: if the method needs exclusive classes and these are not.
    """
    settings = task.settings.consistency
    if settings is None:
        return None
    if isinstance(settings, ConsistencySettings):
        _refuse_findings(task, settings.alignment or settings.thresholds == "adaptive", "freematch")
        return FixMatch(task, settings, shares)
    if isinstance(settings, CBAFedSettings):
        _refuse_findings(task, True, settings.kind)
        return CBAFed(task, settings, shares)
    if isinstance(settings, FedIRMSettings):
        _refuse_findings(task, True, settings.kind)
        return FedIRM(task, settings, len(shares))
    return MeanTeacher(task, settings)


def build_server(
    task: BaselineTask, objectives: Sequence[Objective | None], sites: Sequence[ImageSet], seed: int
) -> Server:
    """The server of a run.

    Args:
        task: Of the training.
        objectives: Of each site.
        sites: The training images of each site.
        seed: Of the run.
    """
    settings = task.settings.consistency
    if isinstance(settings, FedIRMSettings):
        return RelationServer(cast("Sequence[FedIRM]", objectives))
    if isinstance(settings, RSCFedSettings):
        labelled = [bool(len(images.labelled)) for images in sites]
        return ConsensusServer(settings, labelled, task.settings.rounds, seed)
    if isinstance(settings, CBAFedSettings):
        counts = [images.targets.nansum(dim=0) for images in sites]
        unlabelled = [len(images.unlabelled) for images in sites]
        return BalancedServer(settings, cast("Sequence[CBAFed]", objectives), counts, unlabelled)
    return Server(len(sites))


def class_shares(sites: Sequence[ImageSet]) -> Tensor:
    """Share of each class among the labels of all sites, (C,); none is 0 (Laplace's rule)."""
    counts = torch.stack([images.targets.nansum(dim=0) for images in sites]).sum(dim=0) + 1
    return counts / counts.sum()


def _refuse_findings(task: BaselineTask, exclusive: bool, name: str) -> None:
    if exclusive and task.multi_label:
        raise UserError(f"{name} needs images of one class each, and these may have several")
