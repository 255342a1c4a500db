"""A tiny run on real images, and the census of each real data set, divided among sites."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers.messages import sent
from PIL import Image
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.messaging import protocol
from simulations.cli.main import app
from simulations.engine.in_process import run_in_process

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}"),
]

SMALL = (
    "model.autoencoder.channels=[16,16]",
    "model.autoencoder.norm_groups=16",
    "model.unet.channels=[32,32,32]",
    "model.unet.attention=[false,true,true]",
    "model.head.hidden=32",
    "training.precision=fp32",
    "training.autoencoder.local_epochs=0.1",
    "training.joint.local_epochs=0.2",
    "training.joint.augmented_views=1",
    "federation.cpus_per_site=1",
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=1",
    "evaluation.num_samples=16",
    "evaluation.sampling_steps=4",
    "evaluation.num_thresholds=401",
    "evaluation.num_bootstraps=10",
    "evaluation.counterfactual.count=4",
    "evaluation.counterfactual.num_inference_steps=3",
    "evaluation.counterfactual.num_candidates=1",
    "evaluation.counterfactual.relax_mask=false",
)
SOURCES = {
    "isic2019": ("data=isic2019", f"data.root={DATA / 'isic2019'}", "federation.num_sites=4"),
    "chestxray14": ("data=chestxray14", f"data.root={DATA / 'nih_chestxray14'}"),
    "medmnist": ("data=medmnist", f"data.root={DATA / 'breastmnist.npz'}"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_sites_with_real_data_answer_a_census(source: str, stores: Path, tmp_path: Path) -> None:
    overrides = (
        *SOURCES[source],
        *SMALL,
        "data.image_size=32",
        f"data.store={stores}",
        f"run.folder={tmp_path}",
    )
    settings = compose("config", overrides)
    dataset = open_federated_dataset(settings)
    held = 0
    for site, client in enumerate(dataset.clients):
        content = sent(protocol.CENSUS, overrides, settings.fingerprint(), site=site).content
        assert content.config_records[protocol.IDENTITY]["site"] == client.site
        counts = content.metric_records[protocol.METRICS]
        assert counts["images"] == counts["train"] + len(client.validation) + counts["test"]
        assert counts["labelled"] == counts["train"] > 0
        held += int(str(counts["images"]))
    assert held == len(dataset.store.images)
    batch = dataset.train(0).take(dataset.train(0).labelled[:8])
    assert batch.shape == (8, settings.data.channels, 32, 32)
    assert 0 <= float(batch.min()) < float(batch.max()) <= 1


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Every sixteenth dermoscopic image, some of each centre, in the layout of the whole."""
    folder = tmp_path / "isic2019"
    pixels = folder / "ISIC_2019_Training_Input"
    pixels.mkdir(parents=True)
    for table in (DATA / "isic2019").glob("*.csv"):
        header, *rows = table.read_text().splitlines()
        (folder / table.name).write_text("\n".join([header, *rows[::16]]) + "\n")
        for row in rows[::16]:
            name = f"{row.partition(',')[0]}.jpg"
            if not (pixels / name).exists():
                shutil.copy(DATA / "isic2019" / pixels.name / name, pixels)
    return folder


def test_a_tiny_run_on_real_images_can_be_used(few: Path, tmp_path: Path) -> None:
    """Four centres train; then the model classifies, draws and explains."""
    overrides = [
        *SOURCES["isic2019"],
        *SMALL,
        f"data.root={few}",
        "data.labelled_fraction=0.2",
        f"data.store={tmp_path / 'store'}",
    ]
    run = run_in_process("config", [*overrides, f"run.folder='{tmp_path / 'run'}'"]).path
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed" and len(summary["census"]) == 4

    images = sorted(few.rglob("*.jpg"))[:3]
    folder = tmp_path / "images"
    folder.mkdir()
    for image in images:
        (folder / image.name).symlink_to(image)

    def used(*arguments: str) -> Path:
        made = CliRunner().invoke(app, list(arguments))
        assert made.exit_code == 0, made.output
        return Path(made.stdout.splitlines()[-1])

    with used("predict", str(run), str(folder)).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [image.name for image in images]
    classes = list(summary["auc_per_class"])
    for row in rows:
        assert sum(float(row[name]) for name in classes) == pytest.approx(1, abs=1e-4)

    drawn = used("sample", str(run), "--count", "3", "--steps", "3")
    with Image.open(sorted(drawn.glob("seed-*.png"))[0]) as picture:
        assert picture.size == (32, 32) and picture.mode == "RGB"

    seen = max(classes, key=lambda name: float(rows[0][name]))
    target = next(name for name in classes if name != seen)
    panel = used("explain", str(run), "--image", str(folder / images[0].name), "--target", target)
    figures = json.loads(panel.with_suffix(".json").read_text())
    assert figures["asked"].endswith(f"→ {target}")
    # Source and counterfactual have both been through the autoencoder, predict's image has not.
    assert figures["before"][seen] == pytest.approx(float(rows[0][seen]), abs=0.5)
