"""A search among the settings of a sweep, by Optuna's tree-structured Parzen estimator (TPE).

The study is in SQLite, in the sweep's folder. Trials are asked and told in a fixed order, and each
one has a seed of its own, so that the same seed and the same number of trials at once give the same
trials, also after an interruption, and however long each trial takes.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed, fingerprint
from simulations.engine.cell_pool import CellPool
from simulations.sweeps.candidate import Candidate, candidate_of
from simulations.sweeps.objective import has_objective, objective_of
from simulations.sweeps.space import Axis, Interval, Space

if TYPE_CHECKING:  # Optuna is an extra
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STORAGE = "study.db"


class Search:
    """The trials of one study, each a candidate.

    A trial whose cells all finished is complete; one without the figure counts as failed. A trial
    with a cell that failed, or that was interrupted, stays open, and the next call runs it again.
    """

    def __init__(
        self,
        space: Space,
        reference: Candidate,
        root: Path,
        trials: int,
        at_once: int,
        objective: str,
    ) -> None:
        """Opens the study of the space in a folder, or begins it.

        Args:
            space: The settings to search among.
            reference: The first of the space's corners; its first seed is that of the sampler.
            root: Folder of the sweep.
            trials: Number of trials in total, those of earlier calls included.
            at_once: Number of trials that are open at once.
            objective: Name of the figure to maximise, the mean over the space's seeds.
        """
        self.candidates: list[Candidate] = []
        self._space, self._root, self._objective = space, root, objective
        self._trials, self._at_once = trials, at_once
        self._seed = reference.cells[0].settings.seed
        self._study = _open(root / STORAGE, _name(space, reference, objective))
        self._distributions = {axis.key: _distribution(axis) for axis in space.axes}
        self._open: list[Candidate] = []

    def run(self, pool: CellPool) -> None:
        """Runs trials until there are as many as asked for."""
        self._restore()
        pool.add(cell for one in self._open for cell in one.cells)
        while True:
            while len(self._open) < self._at_once and len(self._study.trials) < self._trials:
                self._ask(pool)
            if not self._open:
                return
            pool.step()
            self._tell(pool)

    def _restore(self) -> None:
        """Takes in the trials of earlier calls; those that did not end are open again."""
        for trial in self._study.trials[: self._trials]:
            if set(trial.params) != set(self._distributions):  # killed while it was asked
                if not trial.state.is_finished():
                    self._fail(trial.number)
                continue
            self._take(trial)

    def _take(self, trial: "FrozenTrial") -> None:
        try:
            candidate = candidate_of(self._space, _texts(trial.params), trial.number)
        except UserError:  # reported when it was asked
            if not trial.state.is_finished():
                self._fail(trial.number)
            return
        self.candidates.append(candidate)
        if not trial.state.is_finished():
            self._open.append(candidate)

    def _ask(self, pool: CellPool) -> None:
        """Opens the next trial. One whose settings contradict each other fails at once."""
        from optuna.samplers import TPESampler

        number = len(self._study.trials)
        self._study.sampler = TPESampler(seed=derive_seed(self._seed, "trial", number) % 2**32)
        params = self._study.ask(self._distributions).params
        try:
            candidate = candidate_of(self._space, _texts(params), number)
        except UserError as error:
            self._fail(number)
            pool.report(f"trial {number}: {error}")
            return
        self.candidates.append(candidate)
        self._open.append(candidate)
        pool.add(candidate.cells)

    def _tell(self, pool: CellPool) -> None:
        """Tells the study the ended trials, in their order alone."""
        while self._open and all(pool.is_done(cell) for cell in self._open[0].cells):
            candidate = self._open.pop(0)
            assert candidate.trial is not None
            summaries = [cell.figures(self._root) for cell in candidate.cells]
            finished = [one for one in summaries if one is not None]
            if len(finished) < len(summaries):
                continue
            values = [objective_of(one, self._objective) for one in finished]
            known = [one for one in values if one is not None]
            if len(known) < len(values):
                self._fail(candidate.trial)
            else:
                self._study.tell(candidate.trial, fmean(known))
            return  # before another trial is told, the next one is asked

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, state=TrialState.FAIL)


def corners(space: Space) -> list[Candidate]:
    """Candidates at each value and each bound of one axis, with the others at their first.

    Raises:
        UserError: if there is nothing to search, a candidate's settings do not compose, or its runs
            have no figures of validation patients.
    """
    if not space.axes:
        raise UserError("--trials: no setting but the seed varies; give one as in a=interval(0,1)")
    first = {axis.key: _ends(axis)[0] for axis in space.axes}
    chosen = [first]
    chosen += [{**first, axis.key: end} for axis in space.axes for end in _ends(axis)[1:]]
    candidates = [candidate_of(space, one) for one in chosen]
    for cell in (cell for candidate in candidates for cell in candidate.cells):
        if not has_objective(cell.settings):
            raise UserError(
                f"--trials: {cell.title} has no figures of validation patients to search by; they "
                "need a trained classifier, and with privacy=dp a privacy.validation_noise"
            )
    return candidates


def require_optuna() -> None:
    """Checks that Optuna, an extra, is installed.

    Raises:
        UserError: if it is not.
    """
    if find_spec("optuna") is None:
        raise UserError("--trials needs Optuna: pip install 'fed-mediffusion[sweep]'")


def _name(space: Space, reference: Candidate, objective: str) -> str:
    """Name of the study: another space, other settings or another objective are another study."""
    cells = [cell.settings_hash for cell in reference.cells]
    return fingerprint(axes=list(map(str, space.axes)), cells=cells, objective=objective)[:16]


def _open(path: Path, name: str) -> "Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=f"sqlite:///{path}", study_name=name, direction="maximize", load_if_exists=True
    )


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not isinstance(axis, Interval):
        return CategoricalDistribution(axis.texts)
    if isinstance(axis.low, int) and isinstance(axis.high, int):
        return IntDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _ends(axis: Axis) -> Sequence[str]:
    return (str(axis.low), str(axis.high)) if isinstance(axis, Interval) else axis.texts


def _texts(params: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in params.items()}
