"""The objective of a site that the settings name."""

from simulations.baselines.semi_supervised.fixmatch import FixMatch
from simulations.baselines.semi_supervised.mean_teacher import MeanTeacher
from simulations.baselines.semi_supervised.objective import Objective
from simulations.baselines.semi_supervised.settings import ConsistencySettings
from simulations.baselines.task import BaselineTask


def build_objective(task: BaselineTask) -> Objective | None:
    """A new objective for one site's unlabelled images; None where labels alone train."""
    settings = task.settings.consistency
    if settings is None:
        return None
    if isinstance(settings, ConsistencySettings):
        return FixMatch(task, settings)
    return MeanTeacher(task, settings)
