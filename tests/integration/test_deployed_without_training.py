"""A model from elsewhere, evaluated by a SuperLink and three SuperNodes over TLS on one machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.classifying import classifying_model, pooled_auc
from local_deployment import LocalDeployment, started

from configs.compose import compose, flatten
from mediffusion_core.data.image_set import joined
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from simulations.engine.evaluate import evaluation_overrides

pytestmark = pytest.mark.deployment

NAMES = [f"site-{number}" for number in range(3)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDeployment]:
    with started(tmp_path_factory.mktemp("deployment"), NAMES) as found:
        yield found


def test_the_pooled_auc_is_that_of_the_pooled_images(
    federation: LocalDeployment, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    data = tuple(one for one in tiny if one.startswith(("seed=", "data")))
    settings = compose("config", (*tiny, f"data.store={tmp_path / 'store'}"))
    dataset = open_federated_dataset(settings)
    images = joined([dataset.evaluated(site, "all") for site in range(3)])
    model = classifying_model(settings, dataset.store.classes, images)
    JointDiffusionPipeline.of(model).save_pretrained(tmp_path / "exported")
    asked = (*data, "evaluation.patients=all")
    folder = federation.run(flatten(evaluation_overrides(tmp_path / "exported", None, asked))).path
    figures = json.loads((folder / "summary.json").read_text())["model"]
    assert figures["auc"] == pytest.approx(float(pooled_auc(model, images).mean()), abs=0.002)
    assert list(figures["sites"]) == NAMES
    assert figures["subgroups"]["age"]["0-17"]["sites"] == 0
    assert (folder / "evaluation.md").is_file()
    # No image lies at the server, and no image was prepared there.
    server = federation.pair.folder / "server"
    assert not [*server.rglob("*.png"), *server.rglob("images.npy"), *folder.glob("sites")]
