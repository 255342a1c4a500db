"""The input of a trained model from a user's images."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.untrained import untrained_model
from PIL import Image
from torch import Tensor

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import read_source
from mediffusion_core.data.store.images import fit
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import DataSettings
from simulations.cli import inference
from simulations.cli.inference import draw_samples, explain_image, predict_folder
from unit.data.readers.test_dicom import dataset
from unit.data.readers.test_dicom import save as save_dicom


class FakeModel:
    """Keeps the images that it classifies."""

    classes = ("MEL", "NV")
    multi_label = False

    def __init__(self, data: DataSettings) -> None:
        self.settings = SimpleNamespace(data=data)
        self.seen: list[Tensor] = []

    def classify(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return torch.full((len(images), 2), 0.5)


def use(monkeypatch: pytest.MonkeyPatch, data: DataSettings) -> FakeModel:
    model = FakeModel(data)
    monkeypatch.setattr(inference, "_load", lambda *_: model)
    return model


def isic_folder(root: Path) -> DataSettings:
    """One image, large enough that a JPEG may be decoded at a part of its size."""
    images = root / "ISIC_2019_Training_Input"
    images.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "ISIC_0.jpg")
    truth = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nISIC_0,1,0,0,0,0,0,0,0,0\n"
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text(truth)
    (root / "ISIC_2019_Training_Metadata.csv").write_text("image,lesion_id\nISIC_0,a\n")
    return DataSettings(source="isic2019", root=root, image_size=16, channels=3)


def test_an_image_has_the_pixels_that_it_had_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = isic_folder(tmp_path / "isic")
    trained_on = fit(read_source(data, seed=0).load(0), data.image_size, data.channels)
    model = use(monkeypatch, data)
    predict_folder(tmp_path, tmp_path / "isic", tmp_path / "out.csv", "cpu")
    [[seen]] = model.seen
    assert torch.equal(seen.permute(1, 2, 0), torch.from_numpy(trained_on.copy()).float() / 255)


def test_only_files_that_can_be_decoded_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, DataSettings(source="isic2019", image_size=16, channels=3))
    folder = tmp_path / "images"
    folder.mkdir()
    picture = Image.new("RGB", (20, 20))
    for name in ("a.bmp", "b.gif"):
        picture.save(folder / name)
    with pytest.raises(UserError, match=r"no readable image .*0 of 2 files read; not read: 2 of a"):
        predict_folder(tmp_path, folder, tmp_path / "out.csv", "cpu")
    for name in ("c.tiff", "d.PNG", "e.jpg", "f.webp"):
        picture.save(folder / name)
    written = predict_folder(tmp_path, folder, tmp_path / "out.csv", "cpu")
    rows = list(csv.reader(written.open()))
    assert [row[0] for row in rows] == ["image", "c.tiff", "d.PNG", "e.jpg", "f.webp"]
    assert "4 of 6 files read; not read: 2 of a kind" in capsys.readouterr().err


@pytest.mark.parametrize("window", [None, (1000.0, 501.0)])
def test_dicom_is_read_with_the_window_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: tuple[float, float] | None
) -> None:
    values = np.linspace(0, 2000, 400).reshape(20, 20).astype("u2")
    save_dicom(tmp_path / "images" / "1.2.826.0.1", dataset(values))
    (tmp_path / "images" / "1.2.826.0.2").write_bytes(b"text")
    data = DataSettings(source="dicom", image_size=20, channels=1, window=window)
    model = use(monkeypatch, data)
    predict_folder(tmp_path, tmp_path / "images", tmp_path / "out.csv", "cpu")
    [[seen]] = model.seen
    low, high = (0, 2000) if window is None else (749.5, 1249.5)
    expected = np.clip((values - low) / (high - low), 0, 1)
    assert np.abs(seen[0].numpy() - expected).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["MEL", "MELL"], "unknown class 'MELL', did you mean MEL"),
        (["MEL", "MEL"], "a class is named twice: MEL, MEL"),
        (["MEL", "NV"], "MEL and NV exclude each other; choose one class"),
    ],
)
def test_an_impossible_target_is_refused_before_the_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: list[str], message: str
) -> None:
    use(monkeypatch, DataSettings(source="isic2019", image_size=16, channels=3))
    with pytest.raises(UserError, match=message):
        explain_image(tmp_path, tmp_path / "none.png", targets, tmp_path, "cpu")


def test_drawn_images_are_classified_without_their_grid(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    model = untrained_model(compose("config", tiny), ("Effusion", "Nodule"))
    model.save(RunFolder(tmp_path).model)
    drawn = draw_samples(tmp_path, tmp_path / "samples", count=3, steps=2, seed=1, device="cpu")
    assert (tmp_path / "samples_grid.png").is_file()
    rows = list(csv.reader(predict_folder(tmp_path, drawn, tmp_path / "out.csv", "cpu").open()))
    names = [f"seed-1_{number:05d}.png" for number in range(3)]
    assert [row[0] for row in rows] == ["image", *names]
