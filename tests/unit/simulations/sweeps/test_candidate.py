"""Candidates compose before anything runs, and no two cells are one run."""

import pytest

from mediffusion_core.common.errors import UserError
from simulations.sweeps.candidate import Candidate, candidate_of, images_differ, refuse_equal
from simulations.sweeps.space import parse_space


def grid(*overrides: str) -> list[Candidate]:
    space = parse_space(overrides)
    return [candidate_of(space, chosen) for chosen in space.grid()]


def without(overrides: tuple[str, ...], *names: str) -> list[str]:
    return [one for one in overrides if one.partition("=")[0] not in names]


def test_a_cell_is_a_run_with_the_values_in_their_place(tiny: tuple[str, ...]) -> None:
    fixed = without(tiny, "seed", "training.joint.learning_rate")
    first, second = grid(*fixed, "seed=3,4", "training.joint.learning_rate=3e-4,6e-4")
    assert [cell.settings.seed for cell in first.cells] == [3, 4]
    assert second.chosen == {"training.joint.learning_rate": "0.0006"}
    cell = second.cells[0]
    assert cell.title == "training.joint.learning_rate=0.0006 seed=3"
    assert cell.settings.training.joint.learning_rate == 6e-4
    assert cell.overrides == (*fixed, "seed=3", "training.joint.learning_rate=0.0006")
    assert len({cell.settings_hash for one in (first, second) for cell in one.cells}) == 4


def test_images_are_prepared_once_for_all_seeds_and_rates(tiny: tuple[str, ...]) -> None:
    fixed = without(tiny, "seed", "training.joint.learning_rate", "data.image_size")
    varied = ("seed=3,4", "training.joint.learning_rate=3e-4,6e-4", "data.image_size=32,64")
    cells = [cell for one in grid(*fixed, *varied) for cell in one.cells]
    assert [cell.settings.data.image_size for cell in images_differ(cells)] == [32, 64]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.joint.learning_rate=1e-3,-1"], r"learning_rate"),
        (["training.joint.lerning_rate=1,2"], "unknown setting training.joint.lerning_rate"),
        (["seed=1,x"], "seed"),
        (["run.folder=here", "seed=1,2"], "--folder names that of the sweep"),
        (["privacy=dp", "privacy.ledger=there", "seed=1,2"], "would train on different patients"),
    ],
)
def test_a_cell_that_cannot_run_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        grid(*overrides)
    assert "\n" not in str(caught.value)


def test_settings_that_change_no_figure_are_refused() -> None:
    with pytest.raises(UserError, match="device='cpu' and device='auto' are one run"):
        refuse_equal(grid("device=choice(cpu,auto)"))
