"""The study of guidance: its knee, its options, its page, and the whole of it on a tiny run."""

import json
import math
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.untrained import untrained_model
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.search import most_candidates
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.data.phantom import FINDINGS
from mediffusion_core.evaluation.lpips import lpips
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings, Settings
from simulations.baselines import independent_classifier
from simulations.baselines.federated_run import refuse_what_rivals_ignore
from simulations.baselines.settings import RivalSettings
from simulations.cli.main import app
from simulations.results.study_tables import counterfactual_tables
from simulations.studies.guidance.knee import knee, pareto_front
from simulations.studies.guidance.measure import Bench
from simulations.studies.guidance.methods import Ours, ablations, grid
from simulations.studies.guidance.options import changed_guidance, parse_options
from simulations.studies.guidance.study import study_guidance

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
    assert changed.pop("one attempt") == {"num_candidates", "relax_mask"}
    names = list(changed)
    assert len(names) == 7 and all(len(parts) == 1 for parts in changed.values())
    bare = base.model_copy(update={"proximity_weight": 0.0, "relax_mask": False})
    left = [one.name for one in ablations(bare)]
    assert not {"without closeness", "mask not relaxed", "one attempt, mask relaxed"} & set(left)
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
    options = parse_options("1,2.5", "0.2", "5,10", "200:0.2,500:0.5", 2, 3, ["steps=5"])
    assert options.scales == (1.0, 2.5) and options.starts == (0.2,) and options.steps == (5, 10)
    assert options.reference == ((200.0, 0.2), (500.0, 0.5))
    assert parse_options("1", "1", "1", "", 1, 1, []).reference == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("x", "0.2", "5", ""), "--scales 'x': allowed are numbers above 0, up to 1e"),
        (("1", "1.2", "5", ""), "--starts '1.2': allowed are numbers above 0, up to 1"),
        (("1", "0.2", "2.5", ""), "--steps '2.5': allowed are whole numbers above 0, up to 1000"),
        (("1", "0.2", "5", "200"), "--reference '': allowed are numbers above 0, up to 1"),
    ],
)
def test_what_is_no_number_is_named(given: tuple[str, str, str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options(*given, 1, 1, [])
    assert str(caught.value).startswith(message)


@pytest.fixture(scope="module")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run's folder with a model that nobody has trained."""
    folder = tmp_path_factory.mktemp("guidance")
    settings = compose("config", (*tiny, "data.validation_fraction=0.3"))
    untrained_model(settings, FINDINGS).save(folder / "run" / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FED_MEDIFFUSION_STORE", str(folder / "store"))
        recipe = RivalSettings(rounds=2, local_epochs=0.3, every=2)
        patch.setattr(independent_classifier, "RECIPE", recipe)
        yield folder / "run"


def test_the_study_holds_ours_against_the_reference(run: Path, tmp_path: Path) -> None:
    pairs = "1:0.01,200:0.01"
    options = parse_options(
        "1,4", "0.1", "2", pairs, 1, 1, ["num_inference_steps=2", "num_candidates=2"]
    )
    page = study_guidance(run, options, tmp_path / "out", "cpu")
    results = json.loads((page.parent / "results.json").read_text())
    methods = [row["method"] for row in results["rows"]]
    # Validation patients choose of the published procedure's pairs, and one goes on.
    published = {row["method"]: row["figures"] for row in results["references"]}
    assert list(published) == ["reference, s 1, t 0.01", "reference, s 200, t 0.01"]
    best = max(figures["flipped"]["value"] for figures in published.values())
    assert methods[:2] == ["source", "ours"] and len([m for m in methods if m in published]) == 1
    assert published[methods[-1]]["flipped"]["value"] == best
    assert f"| {methods[-1]} |" in counterfactual_tables([tmp_path / "out"])
    assert len(results["grid"]) == 2
    assert results["knee"] in [None, *(row["method"] for row in results["grid"])]
    source, ours = results["rows"][:2]
    assert source["figures"]["l1"]["value"] == 0 and source["figures"]["flipped"]["value"] == 0
    assert ours["settings"]["num_inference_steps"] == 2
    assert ours["settings"]["num_candidates"] == 2
    assert ours["figures"]["l1"]["value"] > 0
    drawn = results["rows"][methods.index("noised, not inverted")]
    assert drawn["sfid"] > 0
    if lpips() is not None:
        assert source["figures"]["lpips"]["value"] == ours["figures"]["diversity"]["value"] == 0
        assert ours["figures"]["lpips"]["value"] > 0
        assert drawn["figures"]["diversity"]["value"] > 0
    assert 0 < ours["figures"]["extent"]["count"] == ours["figures"]["iou"]["count"]
    assert 0 < ours["figures"]["iou"]["count"] < results["images"]["test"]
    assert ours["figures"]["truth_l1"]["count"] == ours["figures"]["iou"]["count"]
    assert results["independent"]["labelled_images"] > 60
    text = page.read_text()
    assert all(name in text for name in published)
    assert results["knee"] is None or f"**{results['knee']}**" in text
    assert {path.name for path in page.parent.iterdir()} == {
        "results.md",
        "results.json",
        "grid.png",
        "panel_ours.png",
        f"panel_{methods[-1].replace(',', '').replace(' ', '-')}.png",
    }


def test_what_was_measured_stays_where_a_method_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*given: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(TrainedModel, "explain_as_published", out_of_memory)
    options = parse_options("1", "0.1", "2", "200:0.01", 1, 1, ONCE)
    with pytest.raises(MemoryError):
        study_guidance(run, options, tmp_path / "out", "cpu")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["not_measured"] == ["the published procedure"]
    assert "ours" in [row["method"] for row in results["rows"]]
    assert (
        "**Not measured**, since the study ended early: the published procedure."
        in (tmp_path / "out" / "results.md").read_text()
    )
    assert "ours" in counterfactual_tables([tmp_path / "out"])


def test_a_study_that_fails_before_ours_leaves_an_earlier_one_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*given: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(TrainedModel, "explain", out_of_memory)
    (tmp_path / "results.json").write_text("{}")
    options = parse_options("1", "0.1", "2", "", 1, 1, ONCE)
    with pytest.raises(MemoryError):
        study_guidance(run, options, tmp_path, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "{}"


def test_ours_can_be_measured_alone(run: Path, tmp_path: Path) -> None:
    given = ONCE
    options = parse_options("1", "0.1", "2", "200:0.01", 1, 1, given, ours_alone=True)
    page = study_guidance(run, options, tmp_path / "out", "cpu")
    results = json.loads((page.parent / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["source", "ours"]
    assert results["grid"] == [] and results["knee"] is None
    assert "Grid" not in page.read_text()
    assert not (page.parent / "grid.png").exists()


def test_the_independent_classifier_is_trained_once(run: Path) -> None:
    settings = TrainedModel.load(run / "model", torch.device("cpu")).settings
    hospitals = open_federated_dataset(settings)
    images = hospitals.test().take(torch.arange(4))
    asked = partial(
        independent_classifier.independent_classifier, run, settings, hospitals, Console()
    )
    first, figures = asked()
    [folder] = (run / "independent").iterdir()
    written = (folder / "state.json").stat().st_mtime_ns
    again, same = asked()
    assert (folder / "state.json").stat().st_mtime_ns == written
    assert same == figures
    torch.testing.assert_close(first.logits(images), again.logits(images))


@pytest.mark.parametrize(
    "given",
    [
        "privacy=dp",
        "federation.fraction_train=0.5",
        "federation.compression=bf16",
        "federation.local_normalisation=true",
        "federation.client_level.noise_multiplier=1",
        "federation.server.unet.method=fedadam",
    ],
)
def test_how_a_model_was_trained_does_not_matter_to_the_second_opinion(
    given: str, tiny: tuple[str, ...]
) -> None:
    settings = independent_classifier.with_all_labels(compose("config", (*tiny, given)))
    refuse_what_rivals_ignore(settings)
    assert settings.federation.pool_sites and settings.data.labelled_fraction == 1


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is heeded: tests in the background inherit that a terminal's are ignored."""
    heeded = signal.default_int_handler if request.param == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(request.param, heeded)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_ends_the_study_and_keeps_what_was_measured(
    number: signal.Signals, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another SIGTERM, as whoever waits sends, does not end the writing."""
    floor = Bench.floor

    def impatient(bench: Bench) -> float:
        if number != signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)
        return floor(bench)

    monkeypatch.setattr(
        TrainedModel, "explain_as_published", lambda *_, **__: os.kill(os.getpid(), number)
    )
    monkeypatch.setattr(Bench, "floor", impatient)
    before = signal.getsignal(number)
    command = f"study guidance {run} --scales 1 --starts 0.1 --steps 2 --reference 200:0.01"
    few = ["--images", "1", "--grid-images", "1", "--output", str(tmp_path / "out")]
    ended = CliRunner().invoke(
        app, [*command.split(), *few, "guidance_scale=1", "strength=0.1", "num_inference_steps=2"]
    )
    assert ended.exit_code not in (0, 2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["not_measured"] == ["the published procedure"]
    assert signal.getsignal(number) == before
    assert "grid, 1 of 1: s 1, t 0.1, 2 steps\n" in ended.stderr
    compared = [row["method"] for row in results["rows"]]
    # The grid's only point is ours with one attempt.
    assert results["knee"] == "s 1, t 0.1, 2 steps" and "knee of the grid" not in compared
    for place, name in enumerate(compared, start=1):
        assert f"test patients, {place} of {len(compared)}: {name}\n" in ended.stderr


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        (
            "0.9",
            ["guidance_scale=3"],
            "s 1, t 0.9, 1 steps: the classifier was trained on noise up",
        ),
        ("0.2", FAR, f"{GUIDANCE}.num_inference_steps=1 from strength=0.9: the"),
        ("0.2", ["guidance_scale=x"], f"setting {GUIDANCE}.guidance_scale='x': input should be a"),
        ("0.2", ["guidance_scale=["], f"{GUIDANCE}.guidance_scale=[: no viable alternative at in"),
        ("0.2", ["guidance_scale=inf"], f"setting {GUIDANCE}.guidance_scale=inf: input should be"),
        ("0.2", ["guidance_scales=3"], f"unknown setting {GUIDANCE}.guidance_scales, did you mean"),
        ("0.2", ["guidance_scale"], f"override '{GUIDANCE}.guidance_scale' is not of the form key"),
    ],
)
def test_guidance_that_cannot_be_is_named_before_anything_is_measured(
    given: str,
    changes: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bench, "measure", None)
    options = parse_options("1", given, "1", "", 1, 1, changes)
    with pytest.raises(UserError) as caught:
        study_guidance(run, options, tmp_path / "out", "cpu")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_overrides_are_checked_beside_the_runs_own_settings(tiny: tuple[str, ...]) -> None:
    noiseless = compose("config", (*tiny, "training.joint.noised_fraction=0"))
    changed = changed_guidance(noiseless, FAR)
    before = noiseless.evaluation.counterfactual
    assert changed == before.model_copy(update={"strength": 0.9, "num_inference_steps": 1})
    with pytest.raises(UserError, match=r"num_inference_steps=1 from strength=0\.9"):
        changed_guidance(compose("config", tiny), FAR)


def test_a_private_models_guidance_can_be_changed(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """What it was saved with names no public model, which a run that is to be started needs."""
    private = ("privacy=dp", "privacy.trained=head", f"privacy.public_model='{tmp_path}'")
    saved = Settings.model_validate(compose("config", (*tiny, *private)).shared())
    assert saved.privacy.public_model is None
    assert changed_guidance(saved, ["guidance_scale=2"]).guidance_scale == 2


def test_findings_are_not_changed_between(run: Path, tmp_path: Path) -> None:
    options = parse_options("1", "0.1", "2", "", 1, 1, [], between="Nodule,Effusion")
    assert options.between == ("Nodule", "Effusion")
    with pytest.raises(UserError, match="--between Nodule,Effusion: allowed are two classes that"):
        study_guidance(run, options, tmp_path / "out", "cpu")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    options = parse_options("1", "0.1", "2", "", 1, 1, [])
    with pytest.raises(UserError, match="does not exist"):
        study_guidance(tmp_path / "none", options, tmp_path / "out", "cpu")
