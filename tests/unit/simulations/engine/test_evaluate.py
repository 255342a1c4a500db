"""A model is evaluated at all sites: in process, by the messages that deployed sites answer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.classifying import classifying_model, model_logits, pooled_auc
from typer.testing import CliRunner

from configs.compose import compose, split
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet, joined
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.evaluation.calibration import calibration_error
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from server.model_evaluation import evaluated_models
from simulations.cli.main import app
from simulations.engine.evaluate import evaluate, evaluation_overrides, run_config


@dataclass
class Given:
    """An exported model, a second one, the images of all sites, and the overrides of the data."""

    model: TrainedModel
    exported: Path
    other: Path
    images: ImageSet
    overrides: tuple[str, ...]


@pytest.fixture(scope="module")
def given(
    tiny: tuple[str, ...],
    tiny_data: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Given:
    folder = tmp_path_factory.mktemp("evaluation")
    overrides = (*tiny_data, f"data.store={folder / 'store'}", "evaluation.patients=all")
    settings = compose("config", tiny)
    dataset = open_federated_dataset(compose("config", (*tiny, overrides[-2])))
    images = joined([dataset.evaluated(site, "all") for site in range(3)])
    model = classifying_model(settings, dataset.store.classes, images)
    JointDiffusionPipeline.of(model).save_pretrained(folder / "exported")
    other = folder / "run" / "model"
    classifying_model(settings, dataset.store.classes, images, seed=1).save(other)
    return Given(model, folder / "exported", other, images, overrides)


@pytest.fixture(scope="module")
def summary(given: Given, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Figures of the exported model and of its difference from the second one."""
    output = tmp_path_factory.mktemp("evaluated") / "result"
    asked = ("--against", str(given.other), "--output", str(output))
    done = CliRunner().invoke(app, ["evaluate", str(given.exported), *given.overrides, *asked])
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().endswith(str(output))
    table = (output / "evaluation.md").read_text()
    assert "| sex female |" in table and "| site-0 |" in table and table.strip() in done.output
    assert not list(output.rglob("latents*")) and not (output / "report.html").exists()
    return dict(json.loads((output / "summary.json").read_text()))


def test_the_pooled_auc_is_that_of_the_pooled_images(given: Given, summary: dict[str, Any]) -> None:
    exact = pooled_auc(given.model, given.images)
    figures = summary["model"]
    assert figures["auc"] == pytest.approx(float(exact.mean()), abs=0.002)
    assert [*figures["auc_per_class"].values()] == pytest.approx(exact.tolist(), abs=0.002)
    assert list(figures["sites"]) == ["site-0", "site-1", "site-2"]
    low, high = figures["auc_interval"]
    assert low < figures["auc"] < high
    assert summary["census"] == {f"site-{n}": {"images": 60, "patients": 60} for n in range(3)}
    assert (figures["images"], summary["status"]) == (180, "completed")


def test_calibration_is_that_of_the_pooled_images(given: Given, summary: dict[str, Any]) -> None:
    logits = model_logits(given.model, given.images)
    expected = {
        "error": calibration_error(given.model.probabilities(logits), given.images.targets, True),
        "error_uncalibrated": calibration_error(logits.sigmoid(), given.images.targets, True),
        "temperature": 1.5,
    }
    found = summary["model"]["calibration"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_groups_are_those_that_sites_do_not_suppress(given: Given, summary: dict[str, Any]) -> None:
    groups = summary["model"]["subgroups"]
    assert groups["age"]["0-17"]["images"] == groups["age"]["0-17"]["sites"] == 0
    assert groups["sex"]["female"]["sites"] == groups["sex"]["male"]["sites"] == 3
    assert sum(one["images"] for one in groups["sex"].values()) == 180
    assert all(one["images"] >= 10 * one["sites"] for one in groups["age"].values())


def test_the_difference_of_two_models_is_that_of_their_figures(summary: dict[str, Any]) -> None:
    found = summary["difference"]
    assert found["auc"] == pytest.approx(summary["model"]["auc"] - summary["against"]["auc"])
    low, high = found["auc_interval"]
    assert low <= found["auc"] <= high and 0 < found["p"] <= 1


def test_a_model_does_not_differ_from_itself_in_any_bootstrap(given: Given, tmp_path: Path) -> None:
    """Were other patients drawn for the second model, the interval would have a width."""
    output = tmp_path / "result"
    evaluate(given.exported, given.exported, given.overrides, "config", output)
    found = json.loads((output / "summary.json").read_text())["difference"]
    assert (found["auc"], found["auc_interval"], found["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_sites_of_too_few_patients_are_refused_in_one_line(given: Given, tmp_path: Path) -> None:
    few = (*given.overrides, "data.phantom.patients_per_site=[9,9,9]")
    with pytest.raises(UserError, match=r"0 replies to query\.census count"):
        evaluate(given.exported, None, few, "config", tmp_path / "result")
    log = (tmp_path / "result" / "sites" / "site-0" / "site.log").read_text()
    assert "9 patients are fewer than policy.min_patients 10" in log


def test_the_run_configuration_of_deployed_sites_composes_to_the_models_settings(
    given: Given,
) -> None:
    text = run_config(
        given.exported, None, given.overrides, "config", {"evaluation.model": Path("/data/model")}
    )
    overrides = text.removeprefix('overrides="').removesuffix('"')
    settings = compose("config", split(overrides))
    assert settings.evaluation.model == Path("/data/model")
    assert settings.model == given.model.settings.model
    assert settings.data.classes == given.model.classes
    assert settings.task == "evaluation" and '"' not in overrides


def test_the_server_sends_no_model_that_the_run_does_not_name(given: Given) -> None:
    overrides = evaluation_overrides(given.exported, None, given.overrides)
    settings = compose("config", (*overrides, f"evaluation.model={given.other}"))
    with pytest.raises(UserError, match=r"evaluation\.digests has another model"):
        evaluated_models(settings)


def test_a_second_model_of_other_networks_is_refused(given: Given, tmp_path: Path) -> None:
    settings = given.model.settings
    head = settings.model.head.model_copy(update={"hidden": 48})
    changed = settings.model_copy(
        update={"model": settings.model.model_copy(update={"head": head})}
    )
    classifying_model(changed, given.model.classes, given.images).save(tmp_path / "model")
    with pytest.raises(UserError, match=r"evaluation\.against=.*: other networks"):
        evaluate(given.exported, tmp_path / "model", given.overrides, "config", tmp_path / "out")


NAMED = ("evaluation.model=x", "evaluation.digests=[0]")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=evaluation"], "needs evaluation.model"),
        (
            ["task=evaluation", "evaluation.model=x"],
            "needs evaluation.model and evaluation.digests",
        ),
        (["evaluation.model=x"], "need task=evaluation"),
        (["task=evaluation", *NAMED, "privacy=dp"], "exact counts"),
        (
            ["task=evaluation", *NAMED, "federation.num_malicious_sites=1"],
            "num_malicious_sites",
        ),
        (["task=evaluation", *NAMED, "data.labels_at=server"], "labels_at=sites"),
    ],
)
def test_settings_that_can_evaluate_nothing_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose("config", overrides)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{}")
    for folder, said in (("missing", "no such folder"), ("broken", "can't be opened")):
        with pytest.raises(UserError, match=said):
            evaluation_overrides(tmp_path / folder, None, [])
