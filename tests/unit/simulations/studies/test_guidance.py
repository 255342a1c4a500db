"""The parts of the study of guidance: its knee, grid, ablations and options."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.search import most_candidates
from mediffusion_core.settings import CounterfactualSettings, Settings
from simulations.studies.guidance.knee import knee, pareto_front
from simulations.studies.guidance.methods import Ours, ablations, grid
from simulations.studies.guidance.options import (
    Grid,
    changed_guidance,
    parse_reference,
)

GUIDANCE = "evaluation.counterfactual"
ONCE = ["num_inference_steps=1", "num_candidates=1"]
TWICE = ["num_inference_steps=2", "num_candidates=2"]
FAR = ["strength=0.9", "num_inference_steps=1"]
POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_no_point_of_the_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]) -> None:
    costs, gains = [cost for cost, _ in points], [gain for _, gain in points]
    front = pareto_front(costs, gains)
    for at in range(len(points)):
        beaten = any(
            costs[one] <= costs[at] and gains[one] >= gains[at] and points[one] != points[at]
            for one in range(len(points))
        )
        if at in front:
            assert not beaten
        elif not beaten:
            assert points[at] in [points[one] for one in front]
    best = knee(costs, gains)
    assert best in front or (best is None and len(front) > 1)


def test_the_knee_is_where_the_curve_bends() -> None:
    costs, gains = [1.0, 2.0, 3.0, 8.0, 2.5], [0.0, 0.8, 0.9, 1.0, 0.1]
    assert knee(costs, gains) == 1
    assert knee([], []) is None
    assert knee([0.1, 1.0, 2.0], [math.nan, 0.5, 0.4]) == 1
    assert knee([3.0], [0.0]) == 0


@pytest.mark.parametrize("gains", [[0.1, 0.2, 1.0], [0.0, 0.5, 1.0], [0.05, 0.05, 1.0]])
def test_a_curve_that_bends_the_other_way_or_not_at_all_has_no_knee(gains: list[float]) -> None:
    assert knee([1.0, 2.0, 3.0], gains) is None


def test_the_grid_searches_nothing_and_keeps_the_rest() -> None:
    base = CounterfactualSettings(num_candidates=7, proximity_weight=0.3)
    points = grid(base, (1.0, 2.0), (0.2,), (5, 10))
    found = [p.guidance for p in points]
    assert [(g.guidance_scale, g.strength, g.num_inference_steps) for g in found] == [
        (1.0, 0.2, 5),
        (1.0, 0.2, 10),
        (2.0, 0.2, 5),
        (2.0, 0.2, 10),
    ]
    assert {(most_candidates(p.guidance), p.guidance.proximity_weight) for p in points} == {
        (1, 0.3)
    }


@pytest.mark.parametrize("inversion", [True, False])
def test_each_ablation_changes_one_part(inversion: bool) -> None:
    base = CounterfactualSettings(num_candidates=4, proximity_weight=0.1, inversion=inversion)
    whole, *others = ablations(base)
    assert whole.name == "ours" and whole.guidance == base
    changed = {}
    for one in others:
        pairs = zip(base.model_dump().items(), one.guidance.model_dump().values(), strict=True)
        changed[one.name] = {name for (name, before), after in pairs if before != after}
    assert changed.pop("without the image's detail") == set()
    assert [one.name for one in others if one.reconstructed] == ["without the image's detail"]
    assert changed.pop("one candidate") == {"num_candidates", "relax_mask"}
    names = list(changed)
    assert len(names) == 7 and all(len(parts) == 1 for parts in changed.values())
    bare = base.model_copy(update={"proximity_weight": 0.0, "relax_mask": False})
    left = [one.name for one in ablations(bare)]
    assert not {"without closeness", "mask not relaxed", "one candidate, mask relaxed"} & set(left)
    unmasked = ablations(base.model_copy(update={"mask_threshold": 0.0}))
    assert not [one.name for one in unmasked if "mask" in one.name]
    assert ("noised, not inverted" in names) == inversion


def test_redrawn_counterfactuals_share_no_noise_with_the_search_before() -> None:
    base = CounterfactualSettings(num_candidates=8, inversion=False, noise_seed=3)
    first = Ours("ours", base)
    draws = [first, *(first.redrawn(number) for number in (1, 2))]
    seeds = [draw.guidance.noise_seed + attempt for draw in draws for attempt in range(8)]
    assert len(set(seeds)) == 24


def test_options_are_numbers_and_pairs() -> None:
    points = Grid.parse("1,2.5", "0.2", "5,10")
    assert points == Grid(scales=(1.0, 2.5), starts=(0.2,), steps=(5, 10))
    assert parse_reference("200:0.2,500:0.5") == ((200.0, 0.2), (500.0, 0.5))
    assert parse_reference("") == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("x", "0.2", "5"), "--scales 'x': allowed are numbers above 0, up to 1e"),
        (("1", "1.2", "5"), "--starts '1.2': allowed are numbers above 0, up to 1"),
        (("1", "0.2", "2.5"), "--steps '2.5': allowed are whole numbers above 0, up to 1000"),
    ],
)
def test_a_wrong_number_of_the_grid_is_named(given: tuple[str, str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Grid.parse(*given)
    assert str(caught.value).startswith(message)


def test_a_reference_without_a_start_is_named() -> None:
    with pytest.raises(UserError, match="--reference '': allowed are numbers above 0, up to 1"):
        parse_reference("200")


def test_overrides_are_checked_beside_the_runs_own_settings(tiny: tuple[str, ...]) -> None:
    noiseless = compose("config", (*tiny, "training.joint.noised_fraction=0"))
    changed = changed_guidance(noiseless, FAR)
    before = noiseless.evaluation.counterfactual
    assert changed == before.model_copy(update={"strength": 0.9, "num_inference_steps": 1})
    with pytest.raises(UserError, match=r"num_inference_steps=1 from strength=0\.9"):
        changed_guidance(compose("config", tiny), FAR)


def test_a_private_models_guidance_can_be_changed(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Saved settings name no public model, although a new run needs one."""
    private = ("privacy=dp", "privacy.trained=head", f"privacy.public_model='{tmp_path}'")
    saved = Settings.model_validate(compose("config", (*tiny, *private)).shared())
    assert saved.privacy.public_model is None
    assert changed_guidance(saved, ["guidance_scale=2"]).guidance_scale == 2
