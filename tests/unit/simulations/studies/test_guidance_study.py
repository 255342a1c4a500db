"""The study of guidance on an untrained model: its results, failures and signals."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.untrained import untrained_model
from rich.console import Console
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.data.phantom import FINDINGS
from mediffusion_core.evaluation.lpips import lpips
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.baselines import independent_classifier
from simulations.baselines.federated_run import refuse_unsupported
from simulations.baselines.settings import BaselineSettings
from simulations.cli.main import app
from simulations.results.study_tables import counterfactual_tables
from simulations.studies.guidance.measure import MethodEvaluator
from simulations.studies.guidance.options import (
    Grid,
    Options,
)
from simulations.studies.guidance.study import study_guidance
from simulations.studies.study_images import Choice, choose_images, class_names
from simulations.studies.trained_run import open_trained_run

Pairs = tuple[tuple[float, float], ...]
GUIDANCE = "evaluation.counterfactual"
FAR = ["strength=0.9", "num_inference_steps=1"]
FEW = ("num_inference_steps=1", "num_candidates=1")


def one_point(
    overrides: Sequence[str] = (), reference: Pairs = (), *, start: float = 0.1, steps: int = 2
) -> Options:
    """Options with a grid of one point and one image per target."""
    return Options(Grid((1.0,), (start,), (steps,)), reference, 1, 1, tuple(overrides))


@pytest.fixture(scope="module")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run's folder with an untrained model."""
    folder = tmp_path_factory.mktemp("guidance")
    settings = compose("config", (*tiny, "data.validation_fraction=0.3"))
    untrained_model(settings, FINDINGS).save(folder / "run" / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FED_MEDIFFUSION_STORE", str(folder / "store"))
        recipe = BaselineSettings(rounds=2, local_epochs=0.3, every=2)
        patch.setattr(independent_classifier, "RECIPE", recipe)
        yield folder / "run"


def test_the_study_compares_ours_with_the_reference(run: Path, tmp_path: Path) -> None:
    options = Options(
        Grid((1.0, 4.0), (0.1,), (2,)),
        ((1.0, 0.01), (200.0, 0.01)),
        grid_images=1,
        images=1,
        overrides=("num_inference_steps=2", "num_candidates=2"),
    )
    page = study_guidance(run, options, tmp_path / "out", "cpu")
    results = json.loads((page.parent / "results.json").read_text())
    methods = [row["method"] for row in results["rows"]]
    # Validation patients choose of the published procedure's pairs, and one goes on.
    published = {row["method"]: row["figures"] for row in results["references"]}
    assert list(published) == [
        "Mediffusion, scale 1, strength 0.01",
        "Mediffusion, scale 200, strength 0.01",
    ]
    best = max(figures["flipped"]["value"] for figures in published.values())
    assert methods[:2] == ["source", "ours"] and len([m for m in methods if m in published]) == 1
    assert published[methods[-1]]["flipped"]["value"] == best
    assert f"| {methods[-1]} |" in counterfactual_tables([tmp_path / "out"])
    assert len(results["grid"]) == 2
    assert results["knee"] in [None, *(row["method"] for row in results["grid"])]
    source, ours = results["rows"][:2]
    assert source["figures"]["l1"]["value"] == 0 and source["figures"]["flipped"]["value"] == 0
    assert ours["settings"]["num_inference_steps"] == ours["settings"]["num_candidates"] == 2
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
    for name in ("composition", "reversibility"):
        assert source["figures"][name]["value"] == pytest.approx(0, abs=1e-6)
        assert ours["figures"][name]["value"] > 0
        assert ours["figures"][name]["count"] == results["images"]["test"]
    assert source["figures"]["s3"]["value"] == pytest.approx(1)
    assert ours["figures"]["s3"]["value"] < 1
    # A site's nine test images are too few to tell whether its subgroup is kept.
    assert results["subgroup_accuracies"] == {} and "*Kept*" not in page.read_text()
    assert source["figures"]["site_kept"]["count"] == 0
    for ending in ("_ssim", "_l1_source", "_ssim_source"):
        assert ours["figures"][f"truth{ending}"]["count"] == ours["figures"]["iou"]["count"]
        added = ours["figures"][f"added{ending}"]["count"]
        assert added == results["images"]["test"] - ours["figures"]["iou"]["count"]
    # The source's decisions do not change, so no finding correlates even with itself.
    assert source["figures"]["correlation_difference"]["value"] >= 1
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


def test_chosen_images_are_those_at_their_rows_of_the_store(run: Path) -> None:
    trained = open_trained_run(run, "cpu", Console())
    chosen = choose_images(trained, trained.dataset.test(), Choice("test", 1))
    assert torch.equal(chosen.images, as_batch(trained.dataset.pixels[chosen.rows]))


def test_results_stay_if_a_method_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*given: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(TrainedModel, "explain_as_published", out_of_memory)
    options = one_point(FEW, ((200.0, 0.01),))
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
    options = one_point(FEW)
    with pytest.raises(MemoryError):
        study_guidance(run, options, tmp_path, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "{}"


def test_ours_can_be_measured_alone(run: Path, tmp_path: Path) -> None:
    options = replace(one_point(FEW, ((200.0, 0.01),)), ours_alone=True)
    page = study_guidance(run, options, tmp_path / "out", "cpu")
    results = json.loads((page.parent / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["source", "ours"]
    assert results["grid"] == [] and results["knee"] is None
    assert "Grid" not in page.read_text()
    assert not (page.parent / "grid.png").exists()


def test_the_independent_classifier_is_trained_once(run: Path) -> None:
    settings = TrainedModel.load(run / "model", torch.device("cpu")).settings
    dataset = open_federated_dataset(settings)
    images = dataset.test().take(torch.arange(4))
    asked = partial(
        independent_classifier.independent_classifier, run, settings, dataset, Console()
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
def test_the_independent_classifier_ignores_how_the_model_was_trained(
    given: str, tiny: tuple[str, ...]
) -> None:
    settings = independent_classifier.with_all_labels(compose("config", (*tiny, given)))
    refuse_unsupported(settings)
    assert settings.federation.pool_sites and settings.data.labelled_fraction == 1


def test_a_signal_ends_the_study_and_keeps_its_results(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second SIGTERM does not end the writing."""
    floor = MethodEvaluator.floor

    def impatient(evaluator: MethodEvaluator) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return floor(evaluator)

    monkeypatch.setattr(
        TrainedModel, "explain_as_published", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    monkeypatch.setattr(MethodEvaluator, "floor", impatient)
    before = signal.getsignal(signal.SIGTERM)
    command = f"study guidance {run} --scales 1 --starts 0.1 --steps 2 --reference 200:0.01"
    few = ["--images", "1", "--grid-images", "1", "--output", str(tmp_path / "out")]
    guidance = ["guidance_scale=1", "strength=0.1", "num_inference_steps=2"]
    ended = CliRunner().invoke(app, [*command.split(), *few, *guidance])
    assert ended.exit_code not in (0, 2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["not_measured"] == ["the published procedure"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert "grid, 1 of 1: scale 1, strength 0.1, 2 steps\n" in ended.stderr
    compared = [row["method"] for row in results["rows"]]
    # The grid's only point is ours with one candidate.
    assert (
        results["knee"] == "scale 1, strength 0.1, 2 steps" and "knee of the grid" not in compared
    )
    for place, name in enumerate(compared, start=1):
        assert f"test patients, {place} of {len(compared)}: {name}\n" in ended.stderr


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        (
            0.9,
            ["guidance_scale=3"],
            "scale 1, strength 0.9, 1 steps: the classifier was trained on noise up",
        ),
        (0.2, FAR, f"{GUIDANCE}.num_inference_steps=1 from strength=0.9: the"),
        (0.2, ["guidance_scale=x"], f"setting {GUIDANCE}.guidance_scale='x': input should be a"),
        (0.2, ["guidance_scale=["], f"{GUIDANCE}.guidance_scale=[: this value can't be read"),
        (0.2, ["guidance_scale=inf"], f"setting {GUIDANCE}.guidance_scale=inf: input should be"),
        (0.2, ["guidance_scales=3"], f"unknown setting {GUIDANCE}.guidance_scales, did you mean"),
        (0.2, ["guidance_scale"], f"override '{GUIDANCE}.guidance_scale' is not of the form key"),
    ],
)
def test_guidance_that_cannot_be_is_named_before_anything_is_measured(
    given: float,
    changes: list[str],
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MethodEvaluator, "measure", None)
    options = one_point(changes, start=given, steps=1)
    with pytest.raises(UserError) as caught:
        study_guidance(run, options, tmp_path / "out", "cpu")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_findings_are_not_changed_between(run: Path, tmp_path: Path) -> None:
    options = replace(one_point(), between=class_names("Nodule,Effusion"))
    assert options.between == ("Nodule", "Effusion")
    with pytest.raises(UserError, match="--between Nodule,Effusion: allowed are two classes that"):
        study_guidance(run, options, tmp_path / "out", "cpu")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    options = one_point()
    with pytest.raises(UserError, match="does not exist"):
        study_guidance(tmp_path / "none", options, tmp_path / "out", "cpu")
