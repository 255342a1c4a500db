"""Any folder of images: by a table of labels, or by one folder for each class."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.data import ImageError, Source, prepare
from mediffusion_core.data.readers.folder import read
from mediffusion_core.settings import DataSettings

TABLE = """\
image,diagnosis,patient,clinic,part
a.png,MEL,p1,bern,train
deep/b.png,NV,p1,bern,train
c.JPG,NV,p2,basel,Val
d.jpeg,,p3,bern,test
e.png,BCC,p1,basel,train
"""
COLUMNS = {
    "image": "image", "label": "diagnosis", "patient": "patient", "site": "clinic", "split": "part"
}  # fmt: skip
MULTI = {"multi_label": True}


def draw(root: Path, *names: str) -> None:
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def folder_with_table(root: Path) -> DataSettings:
    """Five images of three patients in two sites; p1 stands in both, d.jpeg has no label."""
    draw(root, "a.png", "deep/b.png", "c.JPG", "d.jpeg", "e.png")
    (root / "labels.csv").write_text(TABLE)
    return settings(root, table="labels.csv", columns=COLUMNS)


def settings(root: Path, **options: object) -> DataSettings:
    return DataSettings(source="folder", root=root, image_size=16, channels=3, **options)


def said(source: Source) -> list[str]:
    return [note.text for note in source.notes]


def by_table(root: Path, rows: str, label: object = "label", **options: object) -> Source:
    """Reads a table of images a.png, b.png and c.png whose text is given."""
    draw(root, "a.png", "b.png", "c.png")
    (root / "labels.csv").write_text(rows)
    columns = {"label": label, **options.pop("columns", {})}
    return read(settings(root, table="labels.csv", columns=columns, **options), 0)


def test_table_of_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        source = read(folder_with_table(tmp_path), 0)
    assert source.name == "folder"
    assert source.classes == ("BCC", "MEL", "NV")
    assert source.image_ids == ("a.png", "deep/b.png", "c.JPG", "d.jpeg", "e.png")
    assert source.labels[[0, 1, 2, 4]].argmax(axis=1).tolist() == [1, 2, 2, 0]
    assert np.isnan(source.labels[3]).all()
    assert source.groups == ("p1", "p1", "p2", "p3", "p1")
    assert source.centres == ("bern", "bern", "basel", "bern", "bern")
    assert [move.image_id for move in source.moves] == ["e.png"]
    assert "e.png moves from basel to bern" in caplog.text
    assert source.splits == ("train", "train", "validation", "test", "train")
    load = pickle.loads(pickle.dumps(source.load))
    with Image.open(tmp_path / "deep/b.png") as image:
        assert np.array_equal(load(1), np.asarray(image))


def test_an_absolute_table_may_lie_elsewhere(tmp_path: Path) -> None:
    given = folder_with_table(tmp_path / "images")
    (tmp_path / "images/labels.csv").rename(tmp_path / "labels.csv")
    moved = given.model_copy(update={"table": tmp_path / "labels.csv"})
    assert len(read(moved, 0).image_ids) == 5


def test_table_in_latin_1_with_semicolons_and_a_table_with_bom(tmp_path: Path) -> None:
    given = folder_with_table(tmp_path)
    text = TABLE.replace("MEL", "Mélanome").replace(",", ";")
    for raw in (text.encode("latin-1"), text.encode("utf-8-sig")):
        (tmp_path / "labels.csv").write_bytes(raw)
        assert read(given, 0).classes == ("BCC", "Mélanome", "NV")


def test_without_patients_each_image_is_its_own(tmp_path: Path) -> None:
    source = by_table(tmp_path, "image,label\na.png,x\nb.png,y\n")
    assert source.groups == source.image_ids == ("a.png", "b.png")
    assert source.centres is source.splits is None
    assert any("data.columns.patient" in note for note in said(source))


def test_given_classes_set_the_order_and_may_be_absent(tmp_path: Path) -> None:
    source = by_table(tmp_path, "image,label\na.png,x\nb.png,y\n", classes=("z", "y", "x"))
    assert source.classes == ("z", "y", "x")
    assert source.labels.tolist() == [[0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "<NA>", "null"])
def test_an_empty_cell_is_a_missing_label(tmp_path: Path, cell: str) -> None:
    source = by_table(tmp_path, f"image,label\na.png,x\nb.png,{cell}\nc.png,y\n")
    assert source.classes == ("x", "y")
    assert np.isnan(source.labels).all(axis=1).tolist() == [False, True, False]


def test_a_site_without_any_label_names_its_classes(tmp_path: Path) -> None:
    rows = "image,label\na.png,\nb.png,\n"
    assert np.isnan(by_table(tmp_path, rows, classes=("x", "y")).labels).all()
    with pytest.raises(UserError, match=r"no image has a class.*data\.classes"):
        by_table(tmp_path, rows)


def test_several_findings_in_a_cell(tmp_path: Path) -> None:
    rows = "image,label\na.png,x; y;\nb.png,NO FINDING\nc.png,\n"
    source = by_table(tmp_path, rows.replace(",", "\t"), separator=";", **MULTI)
    assert source.multi_label
    assert source.classes == ("x", "y")
    assert source.labels[:2].tolist() == [[1, 1], [0, 0]]
    assert np.isnan(source.labels[2]).all()
    source = by_table(tmp_path, "image,label\na.png,x|y\nb.png,none\n", **MULTI)
    assert source.labels.tolist() == [[1, 1], [0, 0]]


def test_no_finding_may_be_a_class_of_its_own(tmp_path: Path) -> None:
    rows = "image,label\na.png,No Finding\nb.png,x\n"
    assert by_table(tmp_path, rows).classes == ("No Finding", "x")
    source = by_table(tmp_path, rows, classes=("x", "No Finding"), **MULTI)
    assert source.labels.tolist() == [[0, 1], [1, 0]]


def test_one_column_for_each_class(tmp_path: Path) -> None:
    rows = "image,y,x\na.png,1.0,0\nb.png,False,TRUE\nc.png,,\n"
    source = by_table(tmp_path, rows, ("y", "x"))
    assert source.classes == ("y", "x")
    assert source.labels[:2].tolist() == [[1, 0], [0, 1]]
    assert np.isnan(source.labels[2]).all()
    source = by_table(tmp_path, rows, ("y", "x"), classes=("x", "z", "y"))
    assert source.labels[:2].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_one_column_for_each_finding(tmp_path: Path) -> None:
    rows = "image,y,x\na.png,1,1\nb.png,0,\nc.png,0,0\n"
    source = by_table(tmp_path, rows, ("y", "x"), classes=("x", "y", "z"), **MULTI)
    nan = np.nan
    expected = [[1, 1, nan], [nan, 0, nan], [0, 0, nan]]  # z was not examined
    assert np.array_equal(source.labels, expected, equal_nan=True)
    assert by_table(tmp_path, rows, ("y",), **MULTI).classes == ("y",)


def test_parquet_table(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    draw(tmp_path, "a.png", "b.png")
    columns = {"image": ["a.png", "b.png"], "x": [1.0, float("nan")], "y": [False, True]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    label = {"label": ("x", "y")}
    source = read(settings(tmp_path, table="labels.parquet", columns=label, **MULTI), 0)
    assert np.array_equal(source.labels, [[1, 0], [np.nan, 1]], equal_nan=True)


def test_a_row_given_twice_counts_once(tmp_path: Path) -> None:
    source = by_table(tmp_path, "image,label,age\na.png,x,1\nb.png,y,2\n./a.png, x,3\n")
    assert source.image_ids == ("a.png", "b.png")
    assert "1 rows list an image again and are left out, the first is a.png" in said(source)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("e.png,BCC", "a.png,BCC", "a.png is listed twice, with different 'diagnosis': 'MEL' and"),
        ("e.png", "", "row 5 has no 'image'"),
        ("e.png", "../e.png", r"'\.\./e\.png' is not a path below data\.root"),
        ("e.png", "/etc/e.png", r"'/etc/e\.png' is not a path below data\.root"),
        ("e.png", "deep\\e.png", "backslashes"),
        ("p2", "", "image c.JPG has no 'patient'"),
        ("p2", "NaN", "image c.JPG has no 'patient'"),
        ("basel,Val", ",Val", "image c.JPG has no 'clinic'"),
        ("Val", "", "image c.JPG has no 'part'"),
        ("Val", "held out", "image c.JPG is in split 'held out', allowed are train"),
        ("p2", "p1", "patient 'p1' is in two splits, train and validation"),
        ("diagnosis", "diagnoses", "'diagnosis' is missing.* did you mean diagnoses"),
    ],
)
def test_table_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    given = folder_with_table(tmp_path)
    assert old in TABLE
    (tmp_path / "labels.csv").write_text(TABLE.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        read(given, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "label", "options", "message"),
    [
        ("a.png,melanom,0", "l", {"classes": ("naevus", "melanoma")},
         "a.png: unknown class 'melanom', allowed are naevus, melanoma, did you mean melanoma"),
        ("a.png,x|yy,0", "l", {"classes": ("x", "y"), **MULTI}, "a.png: unknown class 'yy'"),
        ("a.png,x|none,0", "l", MULTI, "a.png has a finding and none at once"),
        ("a.png,x,0\nb.png,x,0", "l", {}, "'x' is the only class"),
        ("a.png,x,0", "l", {"classes": ("x", "x")}, "data.classes lists 'x' twice"),
        ("a.png,1,1", ("l", "m"), {}, "the label of a.png is not one-hot"),
        ("a.png,0,0", ("l", "m"), {}, "the label of a.png is not one-hot"),
        ("a.png,1,", ("l", "m"), {}, "the label of a.png is not one-hot"),
        ("a.png,2,0", ("l", "m"), {}, "a.png has '2' in column 'l', allowed are 0, 1"),
        ("a.png,-1,0", ("l", "m"), MULTI, "a.png has '-1' in column 'l', allowed are 0, 1"),
        ("a.png,1,0", ("l", "m"), {"classes": ("l", "n")}, "unknown class 'm', allowed are l, n"),
        ("a.png,1,0", ("l", "l"), {}, "lists 'l' twice"),
        ("a.png,1,0", ("l",), {}, "'l' is the only class"),
        ("gone.png,x,0\nz.png,y,0", "l", {}, "column 'image' names no file.*first is 'gone.png'"),
    ],
)  # fmt: skip
def test_label_mistakes(
    tmp_path: Path, rows: str, label: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        by_table(tmp_path, f"image,l,m\n{rows}\n", label, **options)
    assert "\n" not in str(error.value)


def test_missing_root_and_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs data\.root"):
        read(settings(tmp_path).model_copy(update={"root": None}), 0)
    with pytest.raises(UserError, match=r"data\.root=.*gone"):
        read(settings(tmp_path / "gone"), 0)
    with pytest.raises(UserError, match=r"data\.table=gone\.csv"):
        read(settings(tmp_path, table="gone.csv"), 0)
    draw(tmp_path, "a.png")
    with pytest.raises(UserError, match="not a folder"):
        read(settings(tmp_path / "a.png"), 0)


def test_class_folders(tmp_path: Path) -> None:
    draw(tmp_path, "NV/x/1.png", "NV/2.JPEG", "MEL/1.jpg", "stray.png", ".cache/x/3.png")
    draw(tmp_path, "__MACOSX/MEL/4.png")
    (tmp_path / "MEL/notes.txt").write_text("none")
    source = read(settings(tmp_path), 0)
    assert source.classes == ("MEL", "NV")
    assert source.image_ids == source.groups == ("MEL/1.jpg", "NV/2.JPEG", "NV/x/1.png")
    assert source.labels.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert source.splits is source.centres is None
    assert set(said(source)[:4]) == {
        "1 file is not read: hidden, the first is .cache/x/3.png",
        "1 file is not read: in folders of the system, the first is __MACOSX/MEL/4.png",
        "1 file is not read: of a kind that is not read (.txt 1), the first is MEL/notes.txt",
        "1 file is not read: in no class folder, the first is stray.png",
    }
    assert read(settings(tmp_path, classes=("NV", "BCC", "MEL")), 0).labels[0].tolist() == [0, 0, 1]


def test_class_folders_in_folders_of_splits(tmp_path: Path) -> None:
    draw(tmp_path, "Train/a/1.png", "Train/b/1.png", "valid/a/1.png", "test/b/1.png")
    source = read(settings(tmp_path), 0)
    assert source.classes == ("a", "b")
    assert source.image_ids[0] == "Train/a/1.png"
    assert source.splits == ("train", "train", "test", "validation")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "no image found"),
        (["1.png", "2.png"], {}, "no image found.*in one folder for each class, or data.table"),
        (["train/1.png", "test/2.png"], {}, "no image found"),
        (["a/1.png", "a/2.png"], {}, "'a' is the only class"),
        (["train/a/1.png", "b/1.png"], {}, "folder train is a split, b is not"),
        (["a/1.png", "b/1.png"], {"classes": ("a", "bb")}, "unknown class 'b', allowed are a, bb"),
        (["a/1.png", "b/1.png"], MULTI, "data.multi_label=true needs data.table"),
    ],
)
def test_class_folder_mistakes(
    tmp_path: Path, names: list[str], options: dict[str, object], message: str
) -> None:
    draw(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        read(settings(tmp_path, **options), 0)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "root"
    draw(root, "a/1.png", "b/1.png")
    draw(tmp_path, "secret/x.png")
    (root / "a/2.png").symlink_to(tmp_path / "secret/x.png")
    (root / "b/2.png").symlink_to(tmp_path / "gone.png")
    source = read(settings(root), 0)
    assert source.image_ids == ("a/1.png", "a/2.png", "b/1.png", "b/2.png")
    for index in (1, 3):
        with pytest.raises(ImageError, match="outside"):
            source.load(index)
    (root / "c").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="folder c is a link"):
        read(settings(root), 0)
    source = by_table(root, "image,label\na/1.png,x\nc/x.png,y\n")
    with pytest.raises(ImageError, match="outside"):
        source.load(1)


def test_bad_files_are_listed_and_the_others_kept(tmp_path: Path) -> None:
    root = tmp_path / "images"
    draw(root, *(f"{name}/{index}.png" for name in "xy" for index in range(4)))
    draw(root, "x/cut.jpg", "y/cut.png")
    for name in ("x/cut.jpg", "y/cut.png"):
        (root / name).write_bytes((root / name).read_bytes()[:400])
    (root / "x/empty.png").touch()
    (root / "y/text.png").write_text("no image")
    bomb = bytearray((root / "y/0.png").read_bytes())
    bomb[16:24] = b"\0\1\0\0" * 2  # 65536 pixels a side, in the header alone
    (root / "y/bomb.png").write_bytes(bomb)
    Image.fromarray(np.full((20, 20), 65535, np.uint16)).save(root / "x/wide.png")
    Image.new("CMYK", (20, 20), (255, 0, 0, 0)).save(root / "x/print.jpg", quality=95)
    given = settings(root, max_bad_fraction=0.5)
    store = prepare(read(given, 0), given, tmp_path / "store", workers=1)
    bad = dict(store.bad)
    assert sorted(bad) == ["x/cut.jpg", "x/empty.png", "y/bomb.png", "y/cut.png", "y/text.png"]
    assert bad["x/empty.png"] == "empty file"
    assert len(store.image_ids) == 10
    places = {name: index for index, name in enumerate(store.image_ids)}
    assert (store.images[places["x/wide.png"]] == 0).all()  # of one value, which has no range
    assert np.abs(store.images[places["x/print.jpg"]].astype(int) - (0, 255, 255)).max() < 6


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    draw(tmp_path, "x/1.png")
    (tmp_path / "y").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "y/turned.jpg", exif=exif)
    assert read(settings(tmp_path), 0).load(1).shape == (30, 20, 3)


def test_fingerprint_follows_everything(tmp_path: Path) -> None:
    given = folder_with_table(tmp_path)
    seen = {read(given, 0).fingerprint}
    assert read(given, 1).fingerprint in seen

    def changed(**update: object) -> None:
        before = len(seen)
        seen.add(read(given.model_copy(update=update), 0).fingerprint)
        assert len(seen) == before + 1

    changed(classes=("BCC", "MEL", "NV"))
    changed(multi_label=True)
    changed(separator=";")
    changed(columns=given.columns.model_copy(update={"site": None}))
    (tmp_path / "labels.csv").write_text(TABLE.replace("MEL", "NEV"))
    changed()
    (tmp_path / "c.JPG").write_bytes((tmp_path / "c.JPG").read_bytes() + b"\0")
    changed()
    (tmp_path / "c.JPG").unlink()
    changed()
    folder_with_table(tmp_path / "other")
    changed(root=tmp_path / "other")
