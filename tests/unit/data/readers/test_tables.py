"""Exported tables: encodings, delimiters, Parquet, and refusals."""

import logging
import sys
from pathlib import Path

import pytest

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.readers.tables import image_path, read_table

ROWS = [{"image": "a.png", "label": "Nævus"}, {"image": "b.png", "label": "Mélanom, früh"}]
TEXT = 'image,label\na.png,Nævus\nb.png,"Mélanom, früh"\n'


def table(folder: Path, content: bytes | str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_table(table(tmp_path, TEXT.encode(encoding)), ("image", "label")) == ROWS
    assert ("Windows-1252" in caplog.text) == (encoding in ("cp1252", "latin-1"))


def test_signs_of_windows_are_read_where_they_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = "image,label\na.png,“früh” –\n".encode("cp1252")
    assert read_table(table(tmp_path, raw), ("label",))[0]["label"] == "“früh” –"
    assert read_table(table(tmp_path, raw + b"\x81.png,x\n"), ("image",))[1]["image"] == "\x81.png"
    assert "Latin-1" in caplog.text


def test_a_marked_but_broken_utf_8_table_is_read_as_latin_1(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbf" + TEXT.encode("latin-1")
    assert read_table(table(tmp_path, raw), ("image", "label")) == ROWS


@pytest.mark.parametrize("raw", [TEXT.encode("utf-16-le"), b"\x89PNG\r\n\x1a\n\0\0image,label\n"])
def test_a_nul_byte_is_no_text(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(UserError, match="not a CSV file"):
        read_table(table(tmp_path, raw), ("image", "label"))


@pytest.mark.parametrize(
    ("name", "raw"), [("a.xlsx", "image"), ("a.xls", "x"), ("a.csv", "PK\3\4")]
)
def test_a_spreadsheet_is_named(tmp_path: Path, name: str, raw: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: not a CSV file; save the sheet as CSV"):
        read_table(table(tmp_path, raw, name), ("image",))


def test_the_line_that_tells_excel_the_delimiter_is_no_header(tmp_path: Path) -> None:
    text = "sep=;\r\nimage;label\r\na.png;x\r\n"
    assert read_table(table(tmp_path, text), ("image",)) == [{"image": "a.png", "label": "x"}]


@pytest.mark.parametrize("sign", [";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(tmp_path: Path, sign: str, end: str) -> None:
    lines = [sign.join(row) for row in (("image", "label"), *(row.values() for row in ROWS))]
    assert read_table(table(tmp_path, end.join(lines)), ("image", "label")) == ROWS


def test_the_header_and_not_the_cells_decide_the_delimiter(tmp_path: Path) -> None:
    text = "image,label\n" + "a.png,x;y;z\n" * 20
    assert read_table(table(tmp_path, text), ("label",))[0]["label"] == "x;y;z"
    text = 'image;"label, of the first reader"\na.png;1\n'
    assert read_table(table(tmp_path, text), ("image",))[0]["image"] == "a.png"


def test_blank_lines_and_empty_cells_at_the_end_are_skipped(tmp_path: Path) -> None:
    text = "\n \n image , label ,age\n\na.png,x,1,,\n,,,\n   \nb.png,y\n\n"
    rows = read_table(table(tmp_path, text), ("image", "label"))
    assert [list(row.values()) for row in rows] == [["a.png", "x", "1"], ["b.png", "y", ""]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("\n\n", "lists no images"),
        ("image,label\n\n", "lists no images"),
        ("image,lable\na,x\n", "'label' is missing, the columns are image, lable, did you mean la"),
        ("image;lable\na;x\n", "'label' is missing, the columns are image, lable, did you mean la"),
        ("image,finding\na,x\n", "'label' is missing, the columns are image, finding$"),
        ("image,label,label\na,x,y\n", "'label' stands there twice"),
        ("image,label,age\na,x,1\n\nb\n", "line 4 is too short"),
        ("image,label\na,x\nb,y,z\n", "line 3 is too long"),
        ('image,label\na,"x\nb,y\nc,z\n', "not a CSV file"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_table(table(tmp_path, text), ("image", "label"))
    assert "\n" not in str(error.value)
    assert "table.csv" in str(error.value)


def test_of_many_columns_an_error_lists_some(tmp_path: Path) -> None:
    header = ",".join(f"gene_{index}" for index in range(20000))
    with pytest.raises(UserError, match=r"gene_0.*\.\.\.") as error:
        read_table(table(tmp_path, f"{header}\n"), ("image",))
    assert len(str(error.value)) < 500


def write_parquet(folder: Path, **columns: object) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


def test_parquet_values_become_text(tmp_path: Path) -> None:
    columns = {
        "image": ["a.png", "b.png", "c.png"],
        "label.first": ["x", None, "y"],
        "patient": [7, None, 9],
        "found": [True, False, None],
        "score": [1.0, float("nan"), None],
        "empty": [None, None, None],
        "boxes": [[1], [2], [3]],
    }
    wanted = [name for name in columns if name != "boxes"]
    rows = read_table(write_parquet(tmp_path, **columns), wanted)
    assert [tuple(row[name] for name in wanted) for row in rows] == [
        ("a.png", "x", "7", "True", "1.0", ""),
        ("b.png", "", "", "False", "", ""),
        ("c.png", "y", "9", "", "", ""),
    ]


def test_parquet_mistakes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, image=["a.png"], lable=["x"], raw=[b"x"], boxes=[[1]])
    with pytest.raises(UserError, match=r"'label' is missing.*did you mean lable"):
        read_table(path, ("image", "label"))
    for column in ("raw", "boxes"):
        with pytest.raises(UserError, match=f"column '{column}' holds .*allowed are text"):
            read_table(path, ("image", column))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"table\.parquet"):
        read_table(path, ("image",))
    with pytest.raises(UserError, match="lists no images"):
        read_table(write_parquet(tmp_path, image=[]), ("image",))


def test_without_pyarrow_the_error_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as Python marks what can't be imported
    with pytest.raises(UserError, match=r"pip install 'fed-mediffusion\[data\]'"):
        read_table(table(tmp_path, b"PAR1", "table.parquet"), ("image",))


@pytest.mark.parametrize("name", ["a.png", "./a.png", ".//a.png"])
def test_a_path_has_one_plain_form(tmp_path: Path, name: str) -> None:
    assert image_path(tmp_path, name) == "a.png"


@pytest.mark.parametrize(
    "name", ["../a.png", "x/../../a.png", "/etc/a.png", "x\\a.png", ".", "a\0.png", "a\x1b[2J.png"]
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="image ") as error:
        image_path(tmp_path, name)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["image", "lesion", "a.png"])
def test_parquet_text_that_is_not_utf8_is_a_mistake(tmp_path: Path, text: str) -> None:
    path = write_parquet(tmp_path, image=["a.png"], lesion=["x"])
    damaged = path.read_bytes().replace(text.encode(), b"\xff" * len(text))
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"table\.parquet: not a Parquet file|is missing") as error:
        read_table(path, ("image",))
    assert "\n" not in str(error.value)
