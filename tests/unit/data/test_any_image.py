"""The same file has the same probabilities in predict, explain and the pipeline."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.untrained import untrained_model
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline
from simulations.cli.inference import explain_image, predict_folder
from simulations.cli.main import app

pydicom = pytest.importorskip("pydicom")
CLASSES = ("Effusion", "Mass", "Nodule")
QUICK = ("num_candidates=1", "relax_mask=false", "num_inference_steps=2")
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions, inverted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Path:
    """A run whose networks are as they were drawn, and whose head reacts to every pixel."""
    guidance = [f"evaluation.counterfactual.{one}" for one in QUICK]
    settings = compose("config", [*tiny, "data.source=isic2019", *guidance])
    model = untrained_model(settings, CLASSES, multi_label=False)
    torch.manual_seed(1)
    for parameter in model.joint.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("run")
    model.save(folder / "model")
    JointDiffusionPipeline.of(model).save_pretrained(folder / "exported")
    return folder


@pytest.fixture(scope="module")
def pipe(run: Path) -> JointDiffusionPipeline:
    return JointDiffusionPipeline.from_pretrained(run / "exported")


def pattern(number: int, height: int = 90, width: int = 120) -> np.ndarray:
    """Something without symmetry, (H, W) of uint16 from 0 to 4095."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(columns / (5 + number % 7)) + np.cos(rows / (4 + number % 5)) * (rows > 30)
    return ((waves + 2) / 4 * 4095).astype(np.uint16)


def save_dicom(path: Path, values: np.ndarray) -> None:
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    made.Rows, made.Columns = values.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation, made.PixelData = 0, values.tobytes()
    made.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four files: all orientations of four formats, large JPEGs, 16 bits, modes, DICOM."""
    place = tmp_path_factory.mktemp("images")
    for ending in ("jpg", "png", "tif", "webp"):
        for orientation in range(1, 9):
            values = (pattern(orientation) // 16).astype(np.uint8)
            image = Image.fromarray(np.stack([values, values[::-1], 255 - values], axis=-1))
            if orientation > 1:
                image = image.transpose(Image.Transpose(TURNS[orientation]))
            exif = Image.Exif()
            exif[0x0112] = orientation
            image.save(place / f"turned{orientation}.{ending}", exif=exif)
    for number in range(8):  # more than four times the model's side
        large = (pattern(number, 900, 700) // 16).astype(np.uint8)
        Image.fromarray(large).save(place / f"large{number}.jpeg", quality=90)
    for number in range(4):
        Image.fromarray(pattern(number)).save(place / f"wide{number}.png")
        Image.fromarray(pattern(number)).save(place / f"wide{number}.tiff")
        save_dicom(place / f"{number}.IMA", pattern(number))
    grey = Image.fromarray((pattern(9) // 16).astype(np.uint8))
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA"):
        grey.convert(mode).save(place / f"mode{mode}.png")
    for mode in ("CMYK", "L", "YCbCr"):
        grey.convert(mode).save(place / f"mode{mode}.JPG")
    for mode in ("RGBA", "RGB", "L"):
        grey.convert(mode).save(place / f"mode{mode}.webp")
    return place


@pytest.fixture(scope="module")
def predicted(run: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    written = predict_folder(run, folder, tmp_path_factory.mktemp("out") / "out.csv", "cpu")
    return {row["image"]: row for row in csv.DictReader(written.open())}


def of(row: dict[str, str]) -> list[float]:
    return [float(row[name]) for name in CLASSES]


def test_predict_and_the_pipeline_agree_on_every_file(
    predicted: dict, folder: Path, pipe: JointDiffusionPipeline
) -> None:
    assert set(predicted) == {path.name for path in folder.iterdir()}
    assert len(predicted) == 64
    for name, row in predicted.items():
        by_path = pipe.classify(folder / name)[0]
        assert by_path.tolist() == np.float32(of(row)).tolist(), name
        if not name.endswith(".IMA"):
            with Image.open(folder / name) as image:
                assert torch.equal(pipe.classify(image)[0], by_path), name
    spread = np.array([of(row) for row in predicted.values()])
    assert spread.std(axis=0).min() > 0.01


def test_explain_reports_the_same_probabilities_before_the_change(
    predicted: dict, run: Path, folder: Path, tmp_path: Path
) -> None:
    for name in ("turned6.jpg", "large3.jpeg", "wide2.png", "1.IMA", "modeP.png", "turned5.tif"):
        row = of(predicted[name])
        target = CLASSES[int(np.argmin(row))]
        panel = explain_image(run, folder / name, [target], tmp_path, "cpu")
        said = json.loads(panel.with_suffix(".json").read_text())["probabilities"]
        assert np.float32(list(said.values())).tolist() == np.float32(row).tolist(), name


def test_explain_keeps_to_masks_for_a_run_and_for_its_export(
    predicted: dict, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = CLASSES[int(np.argmin(of(predicted["1.IMA"])))]
    drawn = np.zeros((90, 120), np.uint8)
    drawn[:, 60:] = 255
    edit, keep = tmp_path / "edit.png", tmp_path / "keep.png"
    Image.fromarray(drawn).save(edit)
    Image.fromarray(drawn[::3, ::3].copy()).rotate(180).save(keep)  # the other half
    said = []
    for model in (run, run / "exported"):
        command = ["explain", str(model), "--image", str(folder / "1.IMA"), "--target", target]
        masks = ["--edit", str(edit), "--keep", str(keep), "--output", str(tmp_path / model.name)]
        ended = CliRunner().invoke(app, [*command, *masks])
        assert ended.exit_code == 0, ended.output
        panel = Path(ended.stdout.splitlines()[-1])
        with Image.open(panel) as picture:
            said.append((json.loads(panel.with_suffix(".json").read_text()), picture.tobytes()))
    assert said[0] == said[1]
    figures, _ = said[0]
    assert figures["editable"] == 0.5 and figures["l1"] > 0
    assert figures["note"].startswith("Within the mask the target's probability reaches 0.")
    assert figures["note"] in ended.stderr


def test_a_mask_of_another_image_is_refused_in_one_line(
    predicted: dict, run: Path, folder: Path, tmp_path: Path
) -> None:
    target = CLASSES[int(np.argmin(of(predicted["1.IMA"])))]
    Image.new("L", (90, 120), 255).save(tmp_path / "edit.png")
    command = ["explain", str(run), "--image", str(folder / "1.IMA"), "--target", target]
    ended = CliRunner().invoke(app, [*command, "--edit", str(tmp_path / "edit.png")])
    assert isinstance(ended.exception, UserError)
    assert str(ended.exception).endswith(
        "edit.png is 90 x 120 pixels, the image 120 x 90: allowed are the image's size and others "
        "of its aspect"
    )


def test_pixels_do_not_depend_on_the_container(predicted: dict) -> None:
    for number in range(4):
        wide = {of(predicted[f"{number if e == 'IMA' else f'wide{number}'}.{e}"])[0]
                for e in ("png", "tiff", "IMA")}  # fmt: skip
        assert max(wide) - min(wide) <= 1e-6
    turned = [of(predicted[f"turned{o}.{e}"]) for o in (2, 5, 8) for e in ("png", "tif")]
    assert len({tuple(one) for one in turned}) == 3  # by the pattern, not by the ending


def test_files_that_are_not_read_are_reported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    (folder / "masks").mkdir(parents=True)
    image = Image.fromarray((pattern(0) // 16).astype(np.uint8))
    for name in ("a.png", "masks/a.png", "a_mask.png", "b.bmp"):
        image.save(folder / name)
    (folder / "c.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "notes.txt").write_text("none")
    (folder / "empty.png").touch()
    written = predict_folder(run, folder, tmp_path / "out.csv", "cpu")
    assert [row[0] for row in csv.reader(written.open())] == ["image", "a.png"]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 7 files read; not read: " in said
    for part in ("2 masks (a_mask.png)", "2 of a kind that is not read (b.bmp)",
                 "1 empty file (empty.png)", "(c.dcm)"):  # fmt: skip
        assert part in said
    listed = list(csv.reader((tmp_path / "out_not_read.csv").open()))[1:]
    assert sorted(row[0] for row in listed) == [
        "a_mask.png", "b.bmp", "c.dcm", "empty.png", "masks/a.png", "notes.txt"
    ]  # fmt: skip
    for name in ("a.png", "a_mask.png"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"no readable image .*0 of 5 files read; not read: "):
        predict_folder(run, folder, tmp_path / "out.csv", "cpu")


def test_a_name_in_latin_1_bytes_ends_nothing(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.fromarray((pattern(0) // 16).astype(np.uint8))
    image.save(folder / "a.png")
    odd = os.fsencode(folder) + b"/M\xfcller.png"
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    os.rename(folder / "b.png", odd)
    written = predict_folder(run, folder, tmp_path / "out.csv", "cpu")
    assert [row[0] for row in csv.reader(written.open())] == ["image", r"M\xfcller.png", "a.png"]
    target = CLASSES[int(np.argmin(of(next(csv.DictReader(written.open())))))]
    panel = explain_image(run, Path(os.fsdecode(odd)), [target], tmp_path / "out", "cpu")
    assert json.loads(panel.with_suffix(".json").read_text())["image"] == r"M\xfcller.png"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    predict_folder(run, folder, tmp_path / "out.csv", "cpu")
    assert r"M\xfcller.png" in (tmp_path / "out_not_read.csv").read_text()
