"""Which folders and cells are classes, which are splits, and which are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import Source, read_source
from mediffusion_core.data.readers.split_names import split_of
from simulations.cli.data_commands import check_data

TUMOURS = ("glioma", "meningioma", "notumor", "pituitary")


def folders(root: Path, *names: str, each: int = 4) -> Path:
    random = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 256, (40, 40), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def source_of(root: Path, *overrides: str) -> Source:
    return read_source(compose("config", ["data=folder", f"data.root={root}", *overrides]).data, 0)


def table(root: Path, text: str, *overrides: str) -> Source:
    folders(root, "x")
    (root / "labels.csv").write_text(text)
    return source_of(root, "data.table=labels.csv", *overrides)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"), ("TRAIN", "train"), ("train_set", "train"), ("trainset", "train"),
        ("Train Images", "train"), ("training-data", "train"), ("images_train", "train"),
        ("TrainSet", "train"), ("train1", "train"), ("Testing", "test"), ("test_set", "test"),
        ("Test Data", "test"), ("testset", "test"), ("val", "validation"), ("Valid", "validation"),
        ("validation_set", "validation"), ("dev", "validation"),
        ("seg_train", None), ("train_val", None), ("glioma", None), ("testis", None),
        ("trained", None), ("contest", None), ("set", None), ("1", None),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("train_set", "test_set"), ("Train Data", "Test Data")],
)
def test_folders_of_splits_are_no_classes(
    tmp_path: Path, train: str, test: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout of Kaggle's brain tumours."""
    folders(tmp_path / "a", *(f"{split}/{name}" for split in (train, test) for name in TUMOURS))
    source = source_of(tmp_path / "a")
    assert source.classes == TUMOURS
    assert source.splits is not None and sorted(set(source.splits)) == ["test", "train"]
    check_data(
        "config",
        ["data=folder", f"data.root={tmp_path / 'a'}", f"data.store={tmp_path / 'store'}",
         "federation.num_sites=1", "data.image_size=32", "model=tiny32"],
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "4 classes, one an image: glioma 8, meningioma 8, notumor 8, pituitary 8" in said
    assert "train 16, validation 0, test 16" in said


def test_splits_may_stand_below_the_classes(tmp_path: Path) -> None:
    folders(tmp_path, "a/train", "a/test", "b/Training", "b/val")
    source = source_of(tmp_path)
    assert source.classes == ("a", "b")
    assert source.splits == tuple(
        split for split in ("test", "train", "train", "validation") for _ in range(4)
    )
    folders(tmp_path, "c")
    with pytest.raises(UserError, match=r"folder Training of a class is a split, c/0\.png lies"):
        source_of(tmp_path)


@pytest.mark.parametrize("names", [("seg_train", "seg_test"), ("glioma", "train_val")])
def test_folders_that_are_nearly_splits_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    folders(tmp_path, *(f"{name}/x" for name in names))
    with pytest.raises(UserError, match=r"looks like a split.*Rename it, or list it in"):
        source_of(tmp_path)
    assert source_of(tmp_path, f"data.classes=[{','.join(names)}]").classes == names


def test_doubled_folders_of_a_mirror_are_looked_through(tmp_path: Path) -> None:
    folders(tmp_path, "chest_xray/chest_xray/train/a", "chest_xray/chest_xray/test/b")
    source = source_of(tmp_path)
    assert source.classes == ("a", "b")
    assert source.splits is not None and set(source.splits) == {"train", "test"}


def test_a_class_of_two_spellings_is_one(tmp_path: Path) -> None:
    source = source_of(folders(tmp_path / "a", "train/Normal", "train/ill", "test/normal"))
    assert source.classes == ("Normal", "ill")
    assert "read as class 'Normal' is also 'normal'" in source.notes[0].text
    rows = "image,label\nx/0.png,1\nx/1.png,1.0\nx/2.png,0\nx/3.png,0.0\n"
    source = table(tmp_path / "b", rows)
    assert source.classes == ("0", "1")
    assert source.labels.argmax(axis=1).tolist() == [1, 1, 0, 0]
    rows = "image,label\nx/0.png,Normal\nx/1.png,normal \nx/2.png,NORMAL\nx/3.png,ill\n"
    source = table(tmp_path / "c", rows)
    assert len(source.classes) == 2 and source.labels.sum(axis=0).max() == 3
    assert source.notes[0].grade == "warning"


def test_given_classes_say_which_spellings_are_one(tmp_path: Path) -> None:
    rows = "image,label\nx/0.png,Normal\nx/1.png,normal\nx/2.png,ill\nx/3.png,1.0\n"
    one = table(tmp_path / "a", rows, "data.classes=[normal,ill,'1']")
    assert one.labels.sum(axis=0).tolist() == [2, 1, 1]
    apart = table(tmp_path / "b", rows, "data.classes=[normal,Normal,ill,'1']")
    assert apart.labels.sum(axis=0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("cells", ["1 0 1.0 0.0", "True False TRUE false", "yes no Yes NO"])
def test_one_column_of_answers_is_one_finding(tmp_path: Path, cells: str) -> None:
    rows = "".join(f"x/{number}.png,{cell}\n" for number, cell in enumerate(cells.split()))
    text = f"image,effusion\n{rows}"
    source = table(tmp_path / "a", text, "data.columns.label=effusion", "data.multi_label=true")
    assert source.classes == ("effusion",)
    assert source.labels.flatten().tolist() == [1, 0, 1, 0]
    named = table(
        tmp_path / "b", text, "data.columns.label=effusion", "data.multi_label=true",
        "data.classes=[Effusion]",
    )  # fmt: skip
    assert named.classes == ("Effusion",) and named.labels.sum() == 2


def test_cells_that_are_read_as_missing_are_said(tmp_path: Path) -> None:
    rows = "image,label,who\nx/0.png,NA,a\nx/1.png,NA,b\nx/2.png,ill,c\nx/3.png,well,NA\n"
    source = table(tmp_path / "a", rows)
    assert "column 'label': read as missing are 'NA' 2" in [note.text for note in source.notes]
    assert np.isnan(source.labels).all(axis=1).tolist() == [True, True, False, False]
    kept = table(tmp_path / "b", rows, "data.classes=[NA,ill,well]")
    assert kept.labels.sum(axis=0).tolist() == [2, 1, 1]
    with pytest.raises(UserError, match=r"x/3\.png has no 'who' \(read as missing are 'NA'\)"):
        table(tmp_path / "c", rows, "data.columns.patient=who")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.png", r"the folder has 4 images of other names"),
        ("gone", r"\(paths need their ending\)"),
        ("0", r"there is 'x/0.png' \(a path is relative to data.root, with its ending\)"),
        ("0.png", r"there is 'x/0.png' \(a path is relative to data.root, with its ending\)"),
    ],
)
def test_a_table_whose_names_match_no_file_is_refused_with_the_reason(
    tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"names no file.*{said}"):
        table(tmp_path, f"image,label\n{name},a\nz.png,b\n")


def test_the_split_column_may_use_any_name_of_a_split(tmp_path: Path) -> None:
    rows = "image,label,part\nx/0.png,a,Training\nx/1.png,b,test_set\nx/2.png,a,VAL\n"
    source = table(tmp_path / "a", rows, "data.columns.split=part")
    assert source.splits == ("train", "test", "validation")
