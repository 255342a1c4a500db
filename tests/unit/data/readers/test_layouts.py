"""Which folders and cells are classes, which are splits, and which are refused."""

import unicodedata
from pathlib import Path
from typing import Literal

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
        ("imagesTr", "train"), ("images_ts", "test"), ("hold-out", "test"), ("Holdout Set", "test"),
        ("tests", "test"), ("labelsTr", None), ("tr", None), ("eval", None),
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


@pytest.mark.parametrize(
    "names", [("seg_train", "seg_test"), ("glioma", "train_val"), ("evaluation", "unseen")]
)
def test_folders_that_are_nearly_splits_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    folders(tmp_path, *(f"{name}/x" for name in names))
    with pytest.raises(UserError, match=r"looks like a split.*Rename it, or list it in"):
        source_of(tmp_path)
    assert source_of(tmp_path, f"data.classes=[{','.join(names)}]").classes == names


@pytest.mark.parametrize(
    "uppers", [("fold_0", "fold_1"), ("Trainingsdaten", "Testdaten"), ("训练", "测试"), ("A", "B")]
)
def test_folders_that_hold_the_same_folders_are_no_classes(
    tmp_path: Path, uppers: tuple[str, ...]
) -> None:
    folders(tmp_path, *(f"{upper}/{name}" for upper in uppers for name in ("ill", "well", "x")))
    with pytest.raises(UserError, match=r"hold the same folders each, ill, well, x; allowed are"):
        source_of(tmp_path)
    named = source_of(tmp_path, f"data.classes=[{','.join(uppers)}]")
    assert named.classes == uppers


def test_folders_below_a_class_may_be_called_alike(tmp_path: Path) -> None:
    folders(tmp_path, "a/images", "b/images", "b/more")
    assert source_of(tmp_path).classes == ("a", "b")


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


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "+1.00"), ("1", "01"), ("1", '"1,0"'), ("COVID-19", "covid 19"),
     ("COVID_19", "COVID‑19"), ("é", "e\u0301"), ("Normal", "normal\u200b"),
     ("Normal", "'Normal.'"), ("\ufeffx", "X")],
)  # fmt: skip
def test_spellings_of_one_class(tmp_path: Path, one: str, other: str) -> None:
    rows = f"image,label\nx/0.png,{one}\nx/1.png,{other}\nx/2.png,ill\nx/3.png,ill\n"
    source = table(tmp_path, rows)
    assert source.labels.sum(axis=0).tolist() == [2, 2]
    assert any("read as class" in note.text for note in source.notes)


@pytest.mark.parametrize("other", ["1_0", "10", "1-0", "HER2-", "one", '"1,000"'])
def test_names_that_are_not_spellings_of_one_class(tmp_path: Path, other: str) -> None:
    one = {"HER2-": "HER2+", "10": "1", "one": "1", "1-0": "-10", '"1,000"': "1"}.get(other, "10")
    rows = f"image,label\nx/0.png,{one}\nx/1.png,{other}\nx/2.png,ill\nx/3.png,ill\n"
    assert len(table(tmp_path, rows).classes) == 3


def test_yes_and_no_said_in_two_ways_are_refused(tmp_path: Path) -> None:
    rows = "image,label\nx/0.png,1\nx/1.png,True\nx/2.png,0\nx/3.png,False\n"
    with pytest.raises(UserError, match=r"says yes and no in several ways, 0, 1, False, True;"):
        table(tmp_path / "a", rows)
    assert table(tmp_path / "b", rows, "data.multi_label=true").labels.sum() == 2


def test_a_column_of_something_else_is_no_column_of_classes(tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,{number}\n" for number in range(1001))
    with pytest.raises(UserError, match=r"1001 classes are found, allowed are 1000; is columns"):
        table(tmp_path, f"image,label\n{rows}")


@pytest.mark.parametrize(
    ("cells", "options", "said"),
    [
        ("a;b c", ("data.multi_label=true",), "class 'a;b' has ';' in its name"),
        ("a|b c", (), "class 'a|b' has '|' in its name; where it means several findings, set"),
        ("None c", (), "class 'None' may stand for a missing label, which an empty cell is"),
        ("? c", (), "class '?' may stand for a missing label"),
    ],
)
def test_classes_that_may_be_none_are_warned_of(
    tmp_path: Path, cells: str, options: tuple[str, ...], said: str
) -> None:
    rows = "".join(f"x/{number}.png,{cell}\n" for number, cell in enumerate(cells.split()))
    source = table(tmp_path / "a", f"image,label\n{rows}", *options)
    assert any(note.text.startswith(said) for note in source.notes if note.grade == "warning")


def test_a_patient_or_site_of_two_spellings_is_one(tmp_path: Path) -> None:
    """Or the patient could stand in two splits."""
    rows = "x/0.png,a,1,Bern\nx/1.png,b,1.0,bern \nx/2.png,a,P2,Basel\nx/3.png,b,p2,Basel\n"
    source = table(
        tmp_path / "a", f"image,label,who,where\n{rows}", "data.columns.patient=who",
        "data.columns.site=where",
    )  # fmt: skip
    assert source.groups == ("1", "1", "P2", "P2")
    assert source.centres == ("Bern", "Bern", "Basel", "Basel")
    said = [note.text for note in source.notes]
    assert "column 'who': read as 'P2' is also 'p2'" in said
    assert "column 'where': read as 'Bern' is also 'bern'" in said
    large = "x/0.png,a,123456789012345678\nx/1.png,b,123456789012345679\n"
    apart = table(tmp_path / "b", f"image,label,who\n{large}", "data.columns.patient=who")
    assert len(set(apart.groups)) == 2


@pytest.mark.parametrize("cell", ["None", "unknown", "-", "#N/A"])
def test_no_patient_is_called_unknown(tmp_path: Path, cell: str) -> None:
    rows = f"image,label,who\nx/0.png,a,{cell}\nx/1.png,b,{cell}\n"
    with pytest.raises(UserError, match=r"x/0\.png has no 'who' \(read as missing are"):
        table(tmp_path, rows, "data.columns.patient=who")


@pytest.mark.parametrize(("on_disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_in_one_character_or_two(
    tmp_path: Path, on_disk: Literal["NFC", "NFD"], listed: Literal["NFC", "NFD"]
) -> None:
    there, given = (unicodedata.normalize(form, "Müller") for form in (on_disk, listed))
    folders(tmp_path, there)
    rows = f"image,label\n{given}/0.png,a\n{given}/1.png,b\n"
    (tmp_path / "labels.csv").write_text(rows)
    source = source_of(tmp_path, "data.table=labels.csv")
    assert source.image_ids == (f"{there}/0.png", f"{there}/1.png")
    (tmp_path / "labels.csv").write_text(f"{rows}{there}/0.png,a\n")
    with pytest.raises(UserError, match="twice, with its accents in two forms"):
        source_of(tmp_path, "data.table=labels.csv")


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
        ("0.PNG", r"there is 'x/0.png' \(a path is relative to data.root, with its ending\)"),
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
