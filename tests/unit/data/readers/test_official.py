"""Official layouts: splits, boxes and masks, CheXpert's labels, MedMNIST's sets."""

import csv
import hashlib
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.dataset import Source
from mediffusion_core.data.readers import chestxray14, chexpert, isic2019, medmnist
from mediffusion_core.data.regions import fill_boxes
from mediffusion_core.data.store.images import ImageError
from mediffusion_core.settings import DataSettings

OBSERVATIONS = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
]  # fmt: skip
CHEST = [f"0000000{index}_000.png" for index in range(4)]
CHEST_PATIENTS = [1, 2, 2, 3]
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write(path: Path, *rows: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def draw(path: Path, shape: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def replace(path: Path, old: str, new: str) -> None:
    content = path.read_bytes().decode()
    assert old in content
    path.write_bytes(content.replace(old, new, 1).encode())


def chest_folder(root: Path) -> DataSettings:
    """Four radiographs of three patients with official lists, and boxes on two of them."""
    places = ["images", "images_001/images", "images_012", "."]
    for name, place in zip(CHEST, places, strict=True):
        draw(root / place / name, (16, 32))
    write(
        root / "Data_Entry_2017_v2020.csv",
        ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"],
        *[[n, "Mass", 0, p] for n, p in zip(CHEST, CHEST_PATIENTS, strict=True)],
    )
    (root / "train_val_list.txt").write_text(f"{CHEST[0]}\n{CHEST[3]}\n99999999_000.png")
    (root / "test_list.txt").write_text(f"{CHEST[1]}\r\n{CHEST[2]}\r\n")
    (root / "BBox_List_2017.csv").write_text(
        f"{BOX_HEADER}\n"
        f"{CHEST[1]},Infiltrate,0.0,512.0,64.0,128.0,,,\n"
        f"{CHEST[2]},Mass,960.0,960.0,63.5,64.4,,,\n"
        f"{CHEST[1]},Nodule,512.0,0.0,32.0,64.0,,,\n"
        "99999999_000.png,Mass,1,1,1,1,,,\n"
    )
    return DataSettings(source="chestxray14", root=root, image_size=16, channels=1)


def isic_folder(root: Path, count: int = 3) -> DataSettings:
    names = [f"ISIC_{index}" for index in range(count)]
    for name in names:
        draw(root / isic2019.IMAGES / f"{name}.jpg", (15, 20, 3))
    classes = [*isic2019.CLASSES, isic2019.UNKNOWN]
    write(root / isic2019.TRUTH, ["image", *classes], *[[n, 1, *[0] * 8] for n in names])
    write(root / isic2019.METADATA, ["image", "lesion_id"], *[[n, n] for n in names])
    return DataSettings(source="isic2019", root=root, image_size=16, channels=3)


def write_masks(root: Path, masks: np.ndarray, names: list[str], **more: np.ndarray) -> Path:
    """Masks (M, H, W) as `lesion_masks.npz`; `more` replaces arrays of it."""
    arrays = {
        "image": np.array(names),
        "mask_packed": np.packbits(masks.reshape(len(masks), -1), axis=1),
        "shape": np.array(masks.shape[1:]),
    }
    np.savez_compressed(root / "lesion_masks.npz", **(arrays | more))
    return root / "lesion_masks.npz"


def chexpert_rows(
    split: str, labels: list[dict[str, str]], first: int, published: str
) -> list[list[object]]:
    rows: list[list[object]] = [
        ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS],
    ]
    for index, given in enumerate(labels):
        path = f"{published}{split}/patient{first + index:05}/study1/view1_frontal.jpg"
        cells = [given.get(name, "") for name in OBSERVATIONS]
        rows.append([path, "Female", 60, "Frontal", "AP", *cells])
    return rows


def chexpert_folder(root: Path, published: str = "CheXpert-v1.0-small/") -> DataSettings:
    """Three training patients and one each for validation and test, as they are published."""
    home = root / "CheXpert-v1.0-small"
    train = [
        {"No Finding": "1.0"},
        {"Edema": "-1.0", "Fracture": "-1.0", "Pleural Effusion": "1.0", "Cardiomegaly": "0.0"},
        {"Support Devices": "1.0"},
    ]
    parts = [("train", train, 1), ("valid", [{"Edema": "1.0"}], 64541), ("test", [{}], 64741)]
    for split, labels, first in parts:
        rows = chexpert_rows(split, labels, first, published)
        write(home / f"{split}.csv", *rows)
        for row in rows[1:]:
            draw(home / str(row[0]).removeprefix(published), (20, 24))
    return DataSettings(source="chexpert", root=root, image_size=16, channels=1)


def medmnist_file(
    root: Path, name: str, shape: tuple[int, ...], labels: list[list[int]], kind: str = "uint8"
) -> DataSettings:
    """`labels` is repeated for each of the three parts."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "val", "test"):
        size = (len(labels), *shape)
        arrays[f"{part}_images"] = rng.integers(0, 256, size, dtype=np.uint8)
        arrays[f"{part}_labels"] = np.array(labels, dtype=kind)
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / name, **arrays)
    return DataSettings(source="medmnist", root=root / name, image_size=16, channels=1)


def medmnist_package(folder: Path, monkeypatch: pytest.MonkeyPatch, info: object) -> None:
    """A package `medmnist` that, like the published one, can't be imported here."""
    (folder / "medmnist").mkdir(parents=True)
    (folder / "medmnist" / "__init__.py").write_text("raise ImportError('torchvision')\n")
    (folder / "medmnist" / "info.py").write_text(f"raise ImportError('home')\n\nINFO = {info!r}\n")
    monkeypatch.syspath_prepend(folder)


def regions_of(source: Source) -> list[np.ndarray | None]:
    regions = pickle.loads(pickle.dumps(source.regions))
    return [regions(index, None) for index in range(len(source.image_ids))]


# ChestX-ray14


def test_chest_lists_give_splits(tmp_path: Path) -> None:
    settings = chest_folder(tmp_path)
    assert chestxray14.read(settings, 0).splits == ("train", "test", "test", "train")
    (tmp_path / "test_list.txt").unlink()
    assert chestxray14.read(settings, 0).splits is None


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train_val_list.txt", CHEST[3], "", f"{CHEST[3]} is in neither of train_val_list"),
        ("test_list.txt", CHEST[1], CHEST[1] + "\n" + CHEST[0], f"{CHEST[0]} is in both of"),
        ("Data_Entry_2017_v2020.csv", "0,3\r\n", "0,2\r\n", "Patient ID 2 has images in both"),
        ("BBox_List_2017.csv", "Infiltrate", "Infiltrat", "unknown finding 'Infiltrat'"),
        ("BBox_List_2017.csv", "Bbox [x", "x", r"column 'Bbox \[x' is missing"),
        ("BBox_List_2017.csv", "960.0,960.0,63.5", "960.0,nan,63.5", rf"box of {CHEST[2]}.*nan"),
        ("BBox_List_2017.csv", "960.0,960.0,63.5", "960.0,960.0,0", rf"box of {CHEST[2]}"),
        ("BBox_List_2017.csv", "960.0,960.0,63.5", "960.0,x,63.5", rf"box of {CHEST[2]}"),
        ("BBox_List_2017.csv", "960.0,960.0,63.5", "1024,0,63.5", rf"box of {CHEST[2]}"),
    ],
)
def test_chest_lists_and_boxes_mistakes(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    settings = chest_folder(tmp_path)
    replace(tmp_path / file, old, new)
    with pytest.raises(UserError, match=message) as error:
        chestxray14.read(settings, 0)
    assert "\n" not in str(error.value)


def test_chest_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    settings = chest_folder(tmp_path)
    (tmp_path / "test_list.txt").write_bytes(b"\xff\xfe0\0")
    with pytest.raises(UserError, match=r"test_list\.txt: not a list"):
        chestxray14.read(settings, 0)


def test_chest_boxes_are_united_and_scaled_to_the_image(tmp_path: Path) -> None:
    source = chestxray14.read(chest_folder(tmp_path), 0)
    none, two, one, also_none = regions_of(source)
    assert none is None and also_none is None
    expected = np.zeros((16, 32), bool)  # 1024 px are 16 rows and 32 columns here
    expected[8:10, 0:2] = True
    expected[0:1, 16:17] = True
    assert two.dtype == np.bool_ and np.array_equal(two, expected)
    assert one.sum() == 2 and one[15, 30:].all()


def test_a_chest_box_is_its_own_findings_alone(tmp_path: Path) -> None:
    source = chestxray14.read(chest_folder(tmp_path), 0)
    assert source.regions is not None
    infiltration, nodule = (source.regions(1, name) for name in ("Infiltration", "Nodule"))
    assert infiltration is not None and nodule is not None
    assert infiltration[8:10, 0:2].all() and infiltration.sum() == 4
    assert nodule[0, 16] and nodule.sum() == 1
    assert source.regions(1, "Mass") is None and source.regions(0, "Mass") is None


def test_chest_without_boxes_has_no_regions(tmp_path: Path) -> None:
    settings = chest_folder(tmp_path)
    (tmp_path / "BBox_List_2017.csv").unlink()
    assert chestxray14.read(settings, 0).regions is None


def test_chest_region_of_an_image_outside_the_root_is_refused(tmp_path: Path) -> None:
    settings = chest_folder(tmp_path / "root")
    path = tmp_path / "root" / "images_012" / CHEST[2]
    path.rename(tmp_path / "secret.png")
    path.symlink_to(tmp_path / "secret.png")
    source = chestxray14.read(settings, 0)
    with pytest.raises(ImageError, match="outside"):
        source.regions(2, "Mass")


def test_chest_images_of_the_parts_are_found(tmp_path: Path) -> None:
    source = chestxray14.read(chest_folder(tmp_path), 0)
    for index in range(4):
        assert source.load(index).shape == (16, 32)


def test_a_box_covers_each_pixel_it_touches() -> None:
    filled = fill_boxes([(1.5, 0.0, 0.2, 1.0), (3.9, 3.9, 9.0, 9.0)], 8, (4, 4))
    assert np.argwhere(filled).tolist() == [[0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2],
                                            [2, 3], [3, 1], [3, 2], [3, 3]]  # fmt: skip


# ISIC 2019


def test_isic_masks_are_matched_by_name(tmp_path: Path) -> None:
    settings = isic_folder(tmp_path)
    masks = np.random.default_rng(0).random((3, 15, 20)) < 0.5  # 300 bits: the last byte is half
    write_masks(tmp_path, masks, ["ISIC_2", "other", "ISIC_0"])
    first, none, last = regions_of(isic2019.read(settings, 0))
    assert first.dtype == np.bool_ and np.array_equal(first, masks[2])
    assert none is None
    assert np.array_equal(last, masks[0])


def test_isic_without_masks_has_no_regions(tmp_path: Path) -> None:
    assert isic2019.read(isic_folder(tmp_path), 0).regions is None


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("shape", np.array([15, 21]), r"mask_packed is uint8 \(2, 38\), allowed is uint8 \(2, 40"),
        ("shape", np.array([15, 0]), "two whole numbers"),
        ("shape", np.array([15.0, 20.0]), "two whole numbers"),
        ("shape", np.array(300), "two whole numbers"),
        ("image", np.array(["ISIC_0"]), "mask_packed is"),
        ("image", np.array([1, 2]), "image is int64"),
        ("image", np.array(["ISIC_0", "ISIC_0"]), "ISIC_0 is listed twice"),
        ("image", np.array(["ISIC_0", None]), "allow_pickle=False"),
        ("mask_packed", np.zeros((2, 38), np.int8), "mask_packed is int8"),
    ],
)
def test_isic_masks_that_do_not_fit(
    tmp_path: Path, array: str, value: np.ndarray, message: str
) -> None:
    settings = isic_folder(tmp_path)
    masks = np.zeros((2, 15, 20), bool)
    write_masks(tmp_path, masks, ["ISIC_0", "ISIC_1"], **{array: value})
    with pytest.raises(UserError, match=message) as error:
        isic2019.read(settings, 0)
    assert "lesion_masks.npz" in str(error.value) and "\n" not in str(error.value)


def test_isic_damaged_masks_are_named_when_read(tmp_path: Path) -> None:
    settings = isic_folder(tmp_path)
    noise = np.random.default_rng(0).random((2, 15, 20)) < 0.5
    whole = write_masks(tmp_path, noise, ["ISIC_0", "ISIC_1"]).read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"mask_packed") + 180] ^= 255
    for broken in (b"", b"junk\n" * 20, whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "lesion_masks.npz").write_bytes(broken)
        with pytest.raises(UserError, match=r"lesion_masks.npz: not a file of packed") as error:
            isic2019.read(settings, 0)
        assert "\n" not in str(error.value)


def test_isic_masks_damaged_after_reading_are_an_image_error(tmp_path: Path) -> None:
    settings = isic_folder(tmp_path)
    path = write_masks(tmp_path, np.ones((1, 15, 20), bool), ["ISIC_0"])
    source = isic2019.read(settings, 0)
    path.write_bytes(b"junk")
    with pytest.raises(ImageError, match=r"lesion_masks.npz"):
        source.regions(0, None)


# CheXpert


def of(source: Source, index: int) -> dict[str, float]:
    return dict(zip(source.classes, source.labels[index].tolist(), strict=True))


def test_chexpert_labels_patients_and_splits(tmp_path: Path) -> None:
    source = chexpert.read(chexpert_folder(tmp_path), 0)
    assert set(source.classes) == set(OBSERVATIONS) - {"No Finding"}
    assert source.multi_label
    assert source.groups == (
        "patient00001", "patient00002", "patient00003", "patient64541", "patient64741",
    )  # fmt: skip
    assert source.splits == ("train", "train", "train", "validation", "test")
    assert source.image_ids[3] == "valid/patient64541/study1/view1_frontal.jpg"
    assert set(of(source, 0).values()) == {0.0}
    assert [name for name, value in of(source, 1).items() if value == 1] == ["Pleural Effusion"]
    assert np.isnan([of(source, 1)["Edema"], of(source, 1)["Fracture"]]).all()
    assert np.isnan(source.labels).sum() == 2
    assert of(source, 2)["Support Devices"] == of(source, 3)["Edema"] == 1
    load = pickle.loads(pickle.dumps(source.load))
    assert [load(index).shape for index in range(5)] == [(20, 24)] * 5


def test_chexpert_uncertain_follows_the_policies(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path)
    prints = {chexpert.read(settings, 0).fingerprint}
    for policy, value in (("zeros", 0.0), ("ones", 1.0)):
        given = settings.model_copy(
            update={"uncertain": policy, "uncertain_by_finding": {"Fracture": "ignore"}}
        )
        source = chexpert.read(given, 0)
        assert of(source, 1)["Edema"] == value
        assert np.isnan(of(source, 1)["Fracture"])
        prints.add(source.fingerprint)
    assert len(prints) == 3


def test_chexpert_unknown_finding_in_the_settings(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path)
    for name, message in (
        ("Pleural Efusion", "'Pleural Efusion', did you mean Pleural Effusion?"),
        ("No Finding", "No Finding"),
        ("Gallstone", "allowed are Enlarged Cardiomediastinum, "),
    ):
        given = settings.model_copy(update={"uncertain_by_finding": {name: "ones"}})
        with pytest.raises(UserError) as error:
            chexpert.read(given, 0)
        assert message in str(error.value)


def test_chexpert_root_may_be_any_of_the_two_folders(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path)
    home = tmp_path / "CheXpert-v1.0-small"
    from_above = chexpert.read(settings, 0)
    inside = chexpert.read(settings.model_copy(update={"root": home}), 0)
    for table in home.glob("*.csv"):
        table.rename(tmp_path / table.name)
    beside = chexpert.read(settings, 0)
    for source in (inside, beside):
        assert source.image_ids == from_above.image_ids
        for index in range(5):
            assert np.array_equal(source.load(index), from_above.load(index))


def test_chexpert_test_table_needs_no_published_folder_and_no_sex(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path)
    path = "test/patient64741/study1/view1_frontal.jpg"
    write(
        tmp_path / "CheXpert-v1.0-small" / "test.csv",
        ["Path", *reversed(OBSERVATIONS)],
        [path, *[int(name == "Edema") for name in reversed(OBSERVATIONS)]],
    )
    source = chexpert.read(settings, 0)
    assert source.image_ids[-1] == path
    assert [name for name, value in of(source, -1).items() if value] == ["Edema"]
    assert source.load(4).shape == (20, 24)


def test_chexpert_with_training_images_alone(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path)
    for split in ("valid", "test"):
        (tmp_path / "CheXpert-v1.0-small" / f"{split}.csv").unlink()
    assert chexpert.read(settings, 0).splits == ("train",) * 3


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train", "-1.0", "2.0", "Edema of .*patient00002.* is '2.0', allowed are 1, 0, -1"),
        ("train", "Pleural Other", "Other", "column 'Pleural Other' is missing"),
        ("train", "patient00002", "patient00001", "patient00001/.* is listed twice"),
        ("train", "train/patient00002", "../patient00002", "is not like CheXpert-v1.0/train"),
        ("train", "CheXpert-v1.0-small/train", "/etc/train", "is not like"),
        ("train", "study1/view1", "../../x", "is not like"),
        ("valid", "patient64541", "patient00003", "patient00003 is in both train.csv and valid"),
    ],
)
def test_chexpert_table_mistakes(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    settings = chexpert_folder(tmp_path)
    replace(tmp_path / "CheXpert-v1.0-small" / f"{file}.csv", old, new)
    with pytest.raises(UserError, match=message) as error:
        chexpert.read(settings, 0)
    assert "\n" not in str(error.value)


def test_chexpert_folder_must_be_the_only_one(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path)
    (tmp_path / "CheXpert-v1.0").mkdir()
    chexpert.read(settings, 0)
    (tmp_path / "CheXpert-v1.0" / "train.csv").touch()
    with pytest.raises(UserError, match=r"found CheXpert-v1\.0, CheXpert-v1\.0-small"):
        chexpert.read(settings, 0)


def test_chexpert_in_batches_as_its_host_serves_it(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path / "a" / "chexpertchestxrays-u20210408", "CheXpert-v1.0/")
    served = tmp_path / "a" / "chexpertchestxrays-u20210408"
    expected = chexpert.read(settings, 0)
    pixels = [expected.load(index) for index in range(5)]
    home = served / "CheXpert-v1.0-small"
    (home / "train" / "patient00003").rename(
        _made(served / "CheXpert-v1.0 batch 4 (train 3)") / "patient00003"
    )
    (home / "train").rename(served / "CheXpert-v1.0 batch 2 (train 1)")
    home.rename(served / "CheXpert-v1.0 batch 1 (validate & csv)")
    for root in (served, served.parent):
        source = chexpert.read(settings.model_copy(update={"root": root}), 0)
        assert source.image_ids == expected.image_ids
        assert all(np.array_equal(source.load(index), pixels[index]) for index in range(5))
    tables = served / "CheXpert-v1.0 batch 1 (validate & csv)"
    for split in ("valid", "test"):
        (tables / f"{split}.csv").unlink()
    with pytest.raises(
        UserError, match=r"none of the 3 images of train.csv is there; looked for .*patient00001"
    ):
        chexpert.read(settings.model_copy(update={"root": tables}), 0)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("make", [isic_folder, chest_folder, chexpert_folder])
def test_doubled_folders_of_mirrors_are_found(tmp_path: Path, make: Any) -> None:
    settings = make(tmp_path / "root" / "archive" / "data")
    read = {"isic2019": isic2019, "chestxray14": chestxray14, "chexpert": chexpert}[
        settings.source
    ].read
    plain = read(settings, 0)
    if settings.source == "isic2019":
        images = tmp_path / "root" / "archive" / "data" / isic2019.IMAGES
        images.rename(tmp_path / "inner")
        (tmp_path / "inner").rename(_made(images) / isic2019.IMAGES)
    if settings.source != "chexpert":
        settings = settings.model_copy(update={"root": tmp_path / "root"})
    else:
        settings = settings.model_copy(update={"root": tmp_path / "root" / "archive"})
    source = read(settings, 0)
    assert source.image_ids == plain.image_ids
    assert source.load(0).shape == source.load(1).shape


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".png"])
@pytest.mark.parametrize("place", ["images", ".", "archive/ISIC_2019_Training_Input"])
def test_isic_images_are_found_wherever_a_mirror_has_them(
    tmp_path: Path, place: str, ending: str
) -> None:
    settings = isic_folder(tmp_path)
    expected = isic2019.read(settings, 0)
    images = tmp_path / isic2019.IMAGES
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for path in sorted(images.iterdir()):
        path.rename(tmp_path / place / f"{path.stem}{ending}")
    source = isic2019.read(settings, 0)
    assert source.image_ids == expected.image_ids and source.notes == ()
    assert source.load(0).shape == (15, 20, 3)


def test_chest_images_are_found_wherever_a_mirror_has_them(tmp_path: Path) -> None:
    settings = chest_folder(tmp_path / "csv")
    for name, place in zip(CHEST, ["images", "images_001/images", "images_012", "."], strict=True):
        (tmp_path / "images-224" / "images-224").mkdir(parents=True, exist_ok=True)
        (tmp_path / "csv" / place / name).rename(tmp_path / "images-224" / "images-224" / name)
    source = chestxray14.read(settings.model_copy(update={"root": tmp_path}), 0)
    assert source.load(3).shape == (16, 32)
    with pytest.raises(UserError, match=r"none of the 4 images is there or below, the first is 0"):
        chestxray14.read(settings, 0)


@pytest.mark.parametrize("make", [isic_folder, chest_folder, chexpert_folder])
def test_files_that_an_official_table_does_not_use_are_counted(tmp_path: Path, make: Any) -> None:
    settings = make(tmp_path)
    read = {"isic2019": isic2019, "chestxray14": chestxray14, "chexpert": chexpert}[
        settings.source
    ].read
    assert read(settings, 0).notes == ()
    draw(tmp_path / "images" / "x.png", (16, 16))
    (tmp_path / "images" / "scan.nii").write_bytes(b"x")
    (tmp_path / ".hidden").touch()
    said = [note.text for note in read(settings, 0).notes]
    assert "1 file is not read: not in the table, the first is images/x.png" in said
    assert len(said) == 3


def test_chexpert_tables_without_the_batch_of_their_images_are_refused(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path)
    (tmp_path / "CheXpert-v1.0-small" / "train").rename(tmp_path.parent / "elsewhere")
    with pytest.raises(UserError, match=r"none of the 3 images of train\.csv is there; looked for"):
        chexpert.read(settings, 0)


def test_a_table_that_is_not_there_says_where_was_looked(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for read, source, table in (
        (isic2019.read, "isic2019", isic2019.TRUTH),
        (chestxray14.read, "chestxray14", "Data_Entry_2017"),
        (chexpert.read, "chexpert", "train.csv"),
    ):
        settings = DataSettings(source=source, root=tmp_path, image_size=16, channels=1)
        with pytest.raises(UserError, match=f"{table}.*up to 2 folders below.* holds other"):
            read(settings, 0)


def test_chexpert_reads_nothing_outside_the_root(tmp_path: Path) -> None:
    settings = chexpert_folder(tmp_path / "root")
    study = tmp_path / "root" / "CheXpert-v1.0-small" / "train" / "patient00001" / "study1"
    study.rename(tmp_path / "study1")
    study.symlink_to(tmp_path / "study1")
    source = chexpert.read(settings, 0)
    with pytest.raises(ImageError, match="outside"):
        source.load(0)


# MedMNIST


@pytest.mark.parametrize(
    ("name", "shape", "labels", "kind"),
    [
        ("breastmnist.npz", (28, 28), [[0], [1]], "uint8"),
        ("pathmnist_64.npz", (64, 64, 3), [[0], [3], [8]], "int64"),
        ("chestmnist_128.npz", (128, 128), [[0] * 14, [1] * 14], "uint8"),
        ("retinamnist_224.npz", (224, 224, 3), [[4], [0], [2]], "uint8"),
    ],
)
def test_medmnist_sizes_tasks_and_splits(
    tmp_path: Path, name: str, shape: tuple[int, ...], labels: list[list[int]], kind: str
) -> None:
    settings = medmnist_file(tmp_path, name, shape, labels, kind)
    source = medmnist.read(settings, 0)
    count = len(labels)
    assert source.splits == tuple(np.repeat(["train", "validation", "test"], count).tolist())
    assert source.load(3 * count - 1).shape == shape
    assert source.multi_label == (len(labels[0]) > 1)
    for index, given in enumerate(labels):
        row = source.labels[count + index]
        if source.multi_label:
            assert row.tolist() == given
        else:  # ordinal ones too: class k is the kth
            assert np.flatnonzero(row).tolist() == given


INFO = {
    "pathmnist": {"label": {"0": "adipose", "1": "background", "2": "debris"}},
    "chestmnist": {"label": {"0": "atelectasis", "1": "hernia"}},
}


@pytest.mark.parametrize(
    ("name", "labels", "classes"),
    [
        ("pathmnist_64.npz", [[0], [1]], ("adipose", "background", "debris")),
        ("pathmnist.npz", [[0], [3]], ("0", "1", "2", "3")),
        ("pathmnist_65.npz", [[0], [1]], ("0", "1")),
        ("dermamnist.npz", [[0], [1]], ("0", "1")),
        ("chestmnist.npz", [[0, 1], [1, 1]], ("atelectasis", "hernia")),
        ("chestmnist.npz", [[0, 1, 0]], ("0", "1", "2")),
    ],
)
def test_medmnist_classes_are_called_as_published(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    labels: list[list[int]],
    classes: tuple[str, ...],
) -> None:
    medmnist_package(tmp_path / "packages", monkeypatch, INFO)
    source = medmnist.read(medmnist_file(tmp_path, name, (8, 8), labels), 0)
    assert source.classes == classes
    assert source.labels.shape == (3 * len(labels), len(classes))
    for row, given in zip(source.labels, labels, strict=False):
        assert (row.tolist() if source.multi_label else np.flatnonzero(row).tolist()) == given


def test_medmnist_class_names_change_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = medmnist_file(tmp_path, "pathmnist.npz", (8, 8), [[0], [2]])
    medmnist_package(tmp_path / "none", monkeypatch, {})
    before = medmnist.read(settings, 0)
    medmnist_package(tmp_path / "packages", monkeypatch, INFO)
    after = medmnist.read(settings, 0)
    assert before.classes == ("0", "1", "2") != after.classes
    assert before.fingerprint != after.fingerprint


@pytest.mark.skipif(
    importlib.util.find_spec("medmnist") is None, reason="the package medmnist is not installed"
)
def test_the_real_package_names_every_two_dimensional_set() -> None:
    info = medmnist._info()
    for flag in medmnist.FLAGS:
        assert len(info[flag]["label"]) >= 2
        assert {"url", "MD5", "url_64", "MD5_224"} <= set(info[flag])
    assert set(medmnist.FLAGS) == {flag for flag in info if not flag.endswith("3d")}


def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, md5: str | None = None) -> Path:
    """A published file at an address of this machine; returns where it is to go."""
    medmnist_file(tmp_path / "web", "pathmnist_64.npz", (64, 64, 3), [[0], [1], [2]])
    file = tmp_path / "web" / "pathmnist_64.npz"
    checksum = md5 or hashlib.md5(file.read_bytes()).hexdigest()
    about = INFO["pathmnist"] | {"url_64": file.as_uri(), "MD5_64": checksum}
    medmnist_package(tmp_path / "packages", monkeypatch, {"pathmnist": about})
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "pathmnist_64.npz"


def settings_for(root: Path) -> DataSettings:
    return DataSettings(source="medmnist", root=root, image_size=16, channels=3)


def test_medmnist_downloads_a_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published(tmp_path, monkeypatch)
    source = medmnist.read(settings_for(path), 0)
    assert len(source.image_ids) == 9 and source.load(0).shape == (64, 64, 3)
    assert path.read_bytes() == (tmp_path / "web" / path.name).read_bytes()
    (tmp_path / "web" / path.name).unlink()
    assert medmnist.read(settings_for(path), 0).fingerprint == source.fingerprint


def test_medmnist_refuses_a_wrong_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published(tmp_path, monkeypatch, md5="0" * 32)
    with pytest.raises(UserError, match="should be 0000"):
        medmnist.read(settings_for(path), 0)
    assert not list(path.parent.glob("*.npz")) and not list(path.parent.glob("*.part"))


def test_medmnist_download_without_address_folder_or_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published(tmp_path, monkeypatch)
    nowhere = tmp_path / "gone" / path.name
    with pytest.raises(UserError, match="no such folder"):
        medmnist.read(settings_for(nowhere), 0)
    (tmp_path / "web" / path.name).unlink()
    with pytest.raises(UserError, match=r"can't be downloaded from file:"):
        medmnist.read(settings_for(path), 0)
    medmnist_package(tmp_path / "none", monkeypatch, {})
    with pytest.raises(UserError, match=r"pathmnist_64.npz: no such file; fed-mediffusion\[med"):
        medmnist.read(settings_for(path), 0)
    with pytest.raises(UserError, match=r"pathmnist_65.npz: no such file or folder"):
        medmnist.read(settings_for(tmp_path / "pathmnist_65.npz"), 0)


@pytest.mark.parametrize(
    "content", [b"", b"junk\n" * 30, b"\x93NUMPY\x01\x00v\x00{", b"PK\x03\x04"]
)
def test_medmnist_refuses_a_file_without_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(UserError, match="not a MedMNIST file") as error:
        medmnist.read(settings_for(tmp_path / "set.npz"), 0)
    assert "\n" not in str(error.value)


def test_medmnist_refuses_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(UserError, match="not a MedMNIST file"):
        medmnist.read(settings_for(tmp_path / "set.npy"), 0)


# All


def with_masks(root: Path) -> DataSettings:
    settings = isic_folder(root)
    write_masks(root, np.zeros((1, 15, 20), bool), ["ISIC_0"])
    return settings


@pytest.mark.parametrize(
    ("make", "read", "file"),
    [
        (chest_folder, chestxray14.read, "train_val_list.txt"),
        (chest_folder, chestxray14.read, "test_list.txt"),
        (chest_folder, chestxray14.read, "BBox_List_2017.csv"),
        (with_masks, isic2019.read, "lesion_masks.npz"),
        (chexpert_folder, chexpert.read, "CheXpert-v1.0-small/train.csv"),
        (chexpert_folder, chexpert.read, "CheXpert-v1.0-small/valid.csv"),
        (chexpert_folder, chexpert.read, "CheXpert-v1.0-small/test.csv"),
        (
            chexpert_folder,
            chexpert.read,
            "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg",
        ),
    ],
)
def test_fingerprint_follows_every_file(
    tmp_path: Path,
    make: Callable[[Path], DataSettings],
    read: Callable[[DataSettings, int], Source],
    file: str,
) -> None:
    settings = make(tmp_path)
    before = read(settings, 0).fingerprint
    assert read(settings, 0).fingerprint == before
    content = (tmp_path / file).read_bytes()
    if file.endswith(".npz"):
        write_masks(tmp_path, np.ones((1, 15, 20), bool), ["ISIC_0"])
    elif file.endswith("csv"):
        first, *rest = content.splitlines(keepends=True)
        text = b"".join([first, *reversed(rest)])
        (tmp_path / file).write_bytes(text if text != content else content + b"\r\n")
    else:
        (tmp_path / file).write_bytes(content + b"\n")
    assert read(settings, 0).fingerprint != before
