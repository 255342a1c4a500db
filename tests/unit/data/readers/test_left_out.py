"""Every file below a folder is read, or counted and named: nothing is left out without a word."""

import os
import string
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import Source, read_source
from mediffusion_core.data.checks.inspection import inspect
from mediffusion_core.data.files import LINK, MASK, FolderFiles, list_folder, shown
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.data.readers.folder import read
from mediffusion_core.reporting.data_card import write_data_card
from mediffusion_core.settings import DataSettings
from simulations.cli.data_commands import check_data

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
SAVED: dict[str, bytes] = {}


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.lower()
    if ending not in SAVED:
        Image.fromarray(PIXELS).save(path)
        SAVED[ending] = path.read_bytes()
    path.write_bytes(SAVED[ending])


def source_of(root: Path, *overrides: str) -> Source:
    asked = ["data=folder", f"data.root={root}", *overrides]
    return read_source(compose("config", asked).data, 0)


def said(source: Source) -> str:
    return "\n".join(f"{note.grade}: {note.text}" for note in source.notes)


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """`data.root` of two classes with twenty images each."""
    for label in "ab":
        for number in range(20):
            draw(tmp_path / label / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("ending", [".tif", ".TIFF", ".webp", ".jfif"])
def test_pictures_of_other_endings_are_read(two_classes: Path, ending: str) -> None:
    for number in range(20):
        (two_classes / "c").mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(
            two_classes / "a" / f"t{number}{ending}", format="JPEG" if ending == ".jfif" else None
        )
        (two_classes / "c" / f"{number}{ending}").write_bytes(
            (two_classes / "a" / f"t{number}{ending}").read_bytes()
        )
    source = source_of(two_classes)
    assert source.classes == ("a", "b", "c")
    assert source.labels.sum(axis=0).tolist() == [40, 20, 20]
    assert source.load(source.image_ids.index(f"c/0{ending}")).shape[:2] == (64, 64)


def test_a_class_without_read_images_is_named(two_classes: Path) -> None:
    for number in range(20):
        (two_classes / "c").mkdir(exist_ok=True)
        (two_classes / "c" / f"{number}.bmp").write_bytes(b"BM")
        (two_classes / "a" / f"{number}.dcm").write_bytes(b"\0" * 128 + b"DICM")
    text = said(source_of(two_classes))
    assert "warning: folder c: none of its 20 files is read" in text
    assert "warning: 40 files are not read: of a kind that is not read (" in text
    assert ".bmp 20" in text and ".dcm 20" in text


@pytest.mark.parametrize("mask", ["a/masks/{}.png", "a/{}_mask.png", "a/{}-Mask.tif", "GT/{}.png"])
def test_masks_are_left_out_and_counted(two_classes: Path, mask: str) -> None:
    for number in range(20):
        draw(two_classes / mask.format(number))
    source = source_of(two_classes)
    assert source.classes == ("a", "b")
    assert len(source.image_ids) == 40
    assert "ok: 20 files are not read: masks, the first is " in said(source)


def test_a_folder_of_masks_that_data_classes_names_is_a_class(tmp_path: Path) -> None:
    for number in range(20):
        for label in ("mask", "with_mask", "without_mask"):
            draw(tmp_path / label / f"{number}.png")
    assert source_of(tmp_path).classes == ("with_mask", "without_mask")
    named = source_of(tmp_path, "data.classes=[mask,with_mask,without_mask]")
    assert named.labels.sum(axis=0).tolist() == [20, 20, 20]


def test_an_error_tells_what_is_not_read(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "mask" / f"{number}.png")
        draw(tmp_path / "plain" / f"{number}.png")
        (tmp_path / "plain" / f"{number}.bmp").write_bytes(b"BM")
    with pytest.raises(
        UserError, match=r"'plain' is the only class.*; 3 files .*\.bmp 3.*; 3 .*masks"
    ):
        source_of(tmp_path)
    with pytest.raises(UserError, match=r"no image found.*; 3 files are not read: of a kind"):
        source_of(tmp_path / "plain")


def test_drawings_that_no_name_tells_from_images_are_warned_of(
    two_classes: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for number in range(20):
        circle = np.hypot(*(np.mgrid[:64, :64] - 20 - number)) < 12
        Image.fromarray(circle.astype(np.uint8) * 255).save(two_classes / "a" / f"{number}_lm.png")
    check_data(
        "config",
        ["data=folder", f"data.root={two_classes}", f"data.store={tmp_path_factory.mktemp('s')}",
         "federation.num_sites=1", "data.image_size=32", "model=tiny32"],
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "20 images are called as others with '_lm' added, the first is a/0_lm.png" in said
    assert "20 images have two grey levels or one, as masks and blank scans have" in said


@pytest.mark.parametrize(
    "folder", ["@eaDir", "#recycle", "$RECYCLE.BIN", "a/@eaDir/x.png", "lost+found", ".Trash-1000"]
)
def test_folders_of_a_nas_are_no_classes(two_classes: Path, folder: str) -> None:
    draw(two_classes / folder / "SYNOPHOTO.png")
    source = source_of(two_classes)
    assert source.classes == ("a", "b")
    assert "1 file is not read: " in said(source)


def test_images_that_the_table_does_not_list_are_counted(two_classes: Path) -> None:
    rows = [f"{label}/{number}.png,{label}" for label in "ab" for number in range(15)]
    (two_classes / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    source = source_of(two_classes, "data.table=labels.csv")
    assert len(source.image_ids) == 30
    assert "warning: 10 files are not read: not in the table, the first is a/15.png" in said(source)
    assert "labels.csv" not in said(source)


def test_names_that_can_not_be_printed_are_left_out(two_classes: Path) -> None:
    draw(two_classes / "a" / "x.png")
    os.rename(two_classes / "a" / "x.png", os.fsencode(two_classes / "a") + b"/M\xfcller.png")
    source = source_of(two_classes)
    assert len(source.image_ids) == 40
    assert r"names with signs that can't be printed, the first is a/M\xfcller.png" in said(source)


def test_the_check_and_the_card_have_every_line(
    two_classes: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        for label in "ab":
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40), np.uint8)
            Image.fromarray(pixels // (1 + (label == "b"))).save(
                two_classes / label / f"{number}.png"
            )
    for number in range(7):
        draw(two_classes / "masks" / f"{number}.png")
    (two_classes / "a" / "scan.nii").write_bytes(b"x")
    out = tmp_path_factory.mktemp("out")
    asked = [
        "data=folder", f"data.root={two_classes}", f"data.store={out}", "federation.num_sites=1",
        "data.image_size=32", "model=tiny32",
    ]  # fmt: skip
    check_data("config", asked)
    lines = capsys.readouterr().out
    composed = compose("config", asked)
    dataset = open_federated_dataset(composed)
    card = write_data_card(
        dataset, read_source(composed.data, 0), composed, out / "card.html"
    ).read_text()
    for text in (
        "2 classes, one an image: a 20, b 20",
        "7 files are not read: masks, the first is masks/0.png",
        "1 file is not read: of a kind that is not read (.nii 1), the first is a/scan.nii",
    ):
        assert text in " ".join(lines.split())
        assert text in card
    assert inspect(dataset)[0].grade != "error"


NAMES = st.one_of(
    st.text(string.ascii_letters + string.digits + " ()-_=#", min_size=1, max_size=6),
    st.sampled_from([
        "数据", "Müller", "архив", "mask", "masks", "0_mask", "mask_0", ".hidden", "._0", "Thumbs",
        "@eaDir", "#recycle", "a", "b", "train", "Testing", "ü" * 3, "image (1)", "a=b", "0",
    ]),
).filter(lambda name: name.strip() and set(name) != {"."})  # fmt: skip
ENDINGS = st.sampled_from(
    [".png", ".PNG", ".jpg", ".tif", ".webp", ".bmp", ".dcm", ".txt", "", ".png.part", ".db"]
)
KINDS = st.sampled_from(["image", "image", "image", "empty", "broken", "copy", "link", "lost link",
                         "folder link"])  # fmt: skip
FILES = st.tuples(st.lists(NAMES, max_size=2), NAMES, ENDINGS, KINDS)


def make(root: Path, files: list[tuple[list[str], str, str, str]]) -> int:
    """A folder of these files; how many there are at the end."""
    made: list[Path] = []
    for folders, stem, ending, kind in files:
        path = root.joinpath(*folders, stem + ending)
        if path.exists() or any(p.is_file() or p.is_symlink() for p in (path, *path.parents)):
            continue
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        if kind == "empty":
            path.touch()
        elif kind == "broken":
            path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
        elif kind == "link" and made:
            path.symlink_to(made[0])
        elif kind == "lost link":
            path.symlink_to(root / "nowhere")
        elif kind == "folder link":
            path.symlink_to(root.parent)
        else:
            usable = (
                ending.lower() if ending.lower() in (".png", ".jpg", ".tif", ".webp") else ".png"
            )
            draw(root.parent / f"saved{usable}")
            path.write_bytes(SAVED[usable])
        made.append(path)
    return sum(len(files) for _, _, files in os.walk(root)) + sum(
        os.path.islink(os.path.join(place, name))
        for place, folders, _ in os.walk(root)
        for name in folders
    )


@settings(max_examples=500)
@given(files=st.lists(FILES, max_size=8))
def test_in_any_folder_every_file_is_read_or_named(
    files: list[tuple[list[str], str, str, str]],
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder, "root").resolve()
        root.mkdir()
        refuse_silence(root, files)


def refuse_silence(root: Path, files: list[tuple[list[str], str, str, str]]) -> None:
    count = make(root, files)
    found = list_folder(root)
    paths = [*found.images, *(one.path for one in found.left_out)]
    assert found.count == len(paths) == len(set(paths)) == count
    on_disk = {
        os.path.relpath(os.path.join(place, name), root)
        for place, folders, names in os.walk(root)
        for name in [*names, *(one for one in folders if os.path.islink(os.path.join(place, one)))]
    }
    assert set(paths) == on_disk
    try:
        source = read(DataSettings(source="folder", root=root, image_size=16, channels=1), 0)
    except UserError as error:
        assert "\n" not in str(error) and str(root) in str(error)
        return
    counted = Counter[str]()
    for note in source.notes:
        words = note.text.split()
        if words[1:4] in (["file", "is", "not"], ["files", "are", "not"]):
            counted["left out"] += int(words[0])
    assert len(source.image_ids) + counted["left out"] == count


def test_links_to_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "away").symlink_to(tmp_path)
    found = list_folder(tmp_path / "root")
    assert [(one.path, one.reason) for one in found.left_out] == [("away", LINK)]
    assert FolderFiles(("x_mask.png",), ()).without(["x_mask.png"], MASK).images == ()


def test_a_name_of_any_bytes_can_be_stored(tmp_path: Path) -> None:
    assert shown(os.fsdecode(b"M\xfcller\n.png")) == r"M\xfcller\n.png"
    assert shown("Müller 数据.png") == "Müller 数据.png"
