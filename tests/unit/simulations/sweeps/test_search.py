"""A search proposes the same trials for the same seed, also after an interruption."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import write_json
from simulations.engine.cell_pool import CellPool
from simulations.engine.cells import Cell
from simulations.sweeps.candidate import candidate_of
from simulations.sweeps.cell import RUN, SweepCell
from simulations.sweeps.search import Search, corners
from simulations.sweeps.space import parse_space

SPACE = [
    "training.joint.learning_rate=tag(log,interval(1e-4,1e-2))",
    "training.joint.labelled_batch_size=int(interval(4,32))",
]


class Pool:
    """Ends added cells in steps, the newest first, with an AUC that depends on their settings."""

    def __init__(self, root: Path, steps: int = 1000, broken: Sequence[str] = ()) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.steps, self.broken = root, steps, broken
        self.waiting: list[SweepCell] = []
        self.failures: dict[str, str] = {}
        self.reported: list[str] = []
        self.ran: list[str] = []

    def add(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            assert isinstance(cell, SweepCell)
            if cell.figures(self.root) is None:
                self.waiting.append(cell)

    def is_done(self, cell: Cell) -> bool:
        return cell.settings_hash in self.failures or cell.figures(self.root) is not None

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise KeyboardInterrupt
        if not self.waiting:
            return
        cell = self.waiting.pop()
        self.ran.append(cell.title)
        joint = cell.settings.training.joint
        if cell.title in self.broken:
            self.failures[cell.settings_hash] = "it broke"
            return
        run = cell.folder(self.root) / RUN
        run.mkdir(parents=True, exist_ok=True)
        auc = 0.8 - 0.1 * abs(math.log(joint.learning_rate / 1e-3)) + 0.01 * cell.settings.seed
        write_json(run / "summary.json", {"status": "completed", "auc_pooled": auc})

    def report(self, line: str) -> None:
        self.reported.append(line)


def search(pool: Pool, trials: int, *overrides: str, at_once: int = 2) -> Search:
    """Runs a search to its end, or until the pool is interrupted."""
    space = parse_space([*SPACE, *overrides])
    found = Search(space, corners(space)[0], pool.root, trials, at_once, "auc_pooled")
    try:
        found.run(cast(CellPool, pool))
    except KeyboardInterrupt:
        assert pool.steps < 0
    return found


def proposed(found: Search) -> list[dict[str, str]]:
    return [dict(one.chosen) for one in found.candidates]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The trials of a search that is not interrupted; after ten the estimator begins."""
    return proposed(search(Pool(tmp_path_factory.mktemp("whole")), 12))


def test_the_seed_decides_the_trials_and_values_are_within_the_space(
    whole: list[dict[str, str]], tmp_path: Path
) -> None:
    assert len(whole) == 12
    for chosen in whole:
        rate, rows = chosen.values()
        assert 1e-4 <= float(rate) <= 1e-2 and 4 <= int(rows) <= 32
    assert len({json.dumps(one) for one in whole}) == 12
    other = proposed(search(Pool(tmp_path / "other"), 2, "seed=1"))
    assert other != whole[:2]


def test_an_interrupted_search_proposes_what_an_undisturbed_one_does(
    whole: list[dict[str, str]], tmp_path: Path
) -> None:
    ran = []
    for steps in (3, 0, 1000):
        pool = Pool(tmp_path, steps)
        found = search(pool, 12)
        ran += pool.ran
    assert proposed(found) == whole
    assert len(ran) == len(set(ran)) == 12  # no trial ran twice
    again = Pool(tmp_path)
    assert proposed(search(again, 12)) == whole
    assert again.ran == []
    search(again, 13)
    assert len(again.ran) == 1  # more trials continue the study


def test_a_trial_that_failed_stays_open_and_the_next_call_runs_it_again(
    whole: list[dict[str, str]], tmp_path: Path
) -> None:
    title = candidate_of(parse_space(SPACE), whole[1]).cells[0].title
    pool = Pool(tmp_path, broken=[title])
    search(pool, 3)
    assert len(pool.failures) == 1 and len(pool.ran) == 3
    again = Pool(tmp_path)
    found = search(again, 3)
    assert proposed(found)[:2] == whole[:2]
    assert again.ran == [title]
    assert all(trial.state.name == "COMPLETE" for trial in found._study.trials)


def test_a_trial_runs_at_every_seed_and_its_figure_is_their_mean(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    found = search(pool, 2, "seed=3,4")
    assert len(pool.ran) == 4
    values = [trial.value for trial in found._study.trials]
    for candidate, value in zip(found.candidates, values, strict=True):
        summaries = [cell.figures(tmp_path) for cell in candidate.cells]
        aucs = [summary["auc_pooled"] for summary in summaries if summary]
        assert value == pytest.approx(sum(aucs) / 2)


def test_settings_that_contradict_each_other_are_a_failed_trial(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    shares = ["data.test_fraction=0.1,0.7,0.75,0.8", "data.validation_fraction=0.1,0.3,0.5,0.8"]
    space = parse_space(shares)
    found = Search(space, corners(space)[0], tmp_path, 4, 1, "auc_pooled")
    found.run(cast(CellPool, pool))
    states = [trial.state.name for trial in found._study.trials]
    assert states.count("FAIL") == len(pool.reported) > 0
    assert states.count("COMPLETE") == len(found.candidates) == 4 - len(pool.reported)
    assert all("leave no training images" in line for line in pool.reported)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1,2"], "--trials: no setting but the seed varies"),
        (["training.joint.learning_rate=interval(-1,1)"], "learning_rate"),
        (["training.joint.learning_rate=interval(1e-4,1e-3)", "privacy=dp"], "no figures of valid"),
        (["training.joint.classification_weight=interval(0,1)"], "no figures of validation"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corners(parse_space(overrides))
