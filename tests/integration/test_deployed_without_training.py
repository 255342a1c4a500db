"""Evaluation and statistics by a SuperLink and three SuperNodes over TLS on one machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.classifying import export_classifying_model
from local_deployment import LocalDeployment, started

from configs.compose import flatten
from simulations.engine.evaluate import evaluation_overrides

pytestmark = pytest.mark.deployment

NAMES = [f"site-{number}" for number in range(3)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDeployment]:
    with started(tmp_path_factory.mktemp("deployment"), NAMES) as found:
        yield found


def test_the_pooled_auc_is_that_of_the_pooled_images(
    federation: LocalDeployment, tiny: tuple[str, ...], tiny_data: tuple[str, ...], tmp_path: Path
) -> None:
    auc = export_classifying_model(tiny, tmp_path)
    asked = (*tiny_data, "evaluation.patients=all")
    folder = federation.run(flatten(evaluation_overrides(tmp_path / "exported", None, asked))).path
    figures = json.loads((folder / "summary.json").read_text())["model"]
    print(f"pooled AUC {figures['auc']:.5f} from the sites' counts, {auc:.5f} of the pooled images")
    assert figures["auc"] == pytest.approx(auc, abs=0.002)
    assert list(figures["sites"]) == NAMES
    assert figures["subgroups"]["age"]["0-17"]["sites"] == 0
    assert (folder / "evaluation.md").is_file()
    assert_no_image_at_the_server(federation, folder)


def test_statistics_count_the_images_of_all_sites(
    federation: LocalDeployment, tiny_data: tuple[str, ...]
) -> None:
    folder = federation.run(flatten([*tiny_data, "task=statistics"])).path
    figures = json.loads((folder / "statistics.json").read_text())
    assert [*figures["sites"]] == NAMES and figures["pooled"]["images"] == 180
    assert figures["sites"]["site-0"]["subgroups"]["age"]["0-17"]["count"] is None
    assert "suppressed" in (folder / "statistics.html").read_text()
    assert_no_image_at_the_server(federation, folder)


def assert_no_image_at_the_server(federation: LocalDeployment, folder: Path) -> None:
    """No image lies there, and none was prepared."""
    server = federation.pair.folder / "server"
    assert not [*server.rglob("*.png"), *server.rglob("images.npy"), *folder.glob("sites")]
