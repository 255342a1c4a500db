"""Tables and folders as data sets publish them, checked before anything relies on them."""

import codecs
import csv
import io
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.files import is_printable
from mediffusion_core.settings import DataSettings, did_you_mean

DELIMITERS = ",;\t"
PARQUET_TEXT = ("string", "large_string", "string_view", "null")
SHEETS = (".xlsx", ".xls", ".ods")
ARCHIVE = b"PK\x03\x04"
"""How a zip file starts, and so a spreadsheet."""
LISTED = 20
"""Columns that an error lists at most."""

logger = logging.getLogger(__name__)


def data_root(settings: DataSettings) -> Path:
    """The resolved `data.root`.

    Raises:
        UserError: where it is not set or does not exist.
    """
    if settings.root is None:
        raise UserError(f"data.source={settings.source} needs data.root=<where the data lies>")
    if not settings.root.exists():
        raise UserError(f"data.root={settings.root}: no such file or folder")
    return settings.root.resolve()


def read_table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a table with a header, at least the columns asked for.

    A cell that is empty, or that a row is too short to have, is "".

    A `.parquet` file is read as such. Any other file is text in UTF-8, UTF-16 with its mark, or
    Windows-1252, and its delimiter is the one of `DELIMITERS` that finds the columns; blank lines
    are skipped.

    Raises:
        UserError: missing file or column, a column given twice, a row too short for the columns
            or too long for the header, a table without rows, or no table at all.
    """
    if not path.is_file():
        raise UserError(f"data.root={path.parent}: {path.name} is missing")
    wanted = tuple(columns)
    try:
        if path.suffix.lower() == ".parquet":
            rows = _parquet_rows(path, wanted)
        else:
            rows = _text_rows(path, _text(path), wanted)
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise UserError(f"{path}: {reason}") from None
    if not rows:
        raise UserError(f"{path}: the table lists no images")
    return rows


def _text(path: Path) -> str:
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if path.suffix.lower() in SHEETS or raw.startswith(ARCHIVE):
        raise UserError(f"{path}: not a CSV file; save the sheet as CSV")
    try:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return _without_separator_line(raw.decode("utf-16"))
        if b"\0" in raw:
            raise UserError(f"{path}: not a CSV file (it holds NUL bytes)")
        return _without_separator_line(raw.decode())
    except UnicodeDecodeError:
        pass
    try:
        text, encoding = raw.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError:  # which has five holes
        text, encoding = raw.decode("latin-1"), "Latin-1"
    logger.warning("%s: not UTF-8, so it is read as %s", path, encoding)
    return _without_separator_line(text)


def _without_separator_line(text: str) -> str:
    """A table without the line `sep=;` that Excel reads before the header."""
    return re.sub(r"\Asep=.\r?\n", "", text)


def _text_rows(path: Path, text: str, wanted: tuple[str, ...]) -> list[dict[str, str]]:
    headers = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS}
    delimiter = max(headers, key=lambda sign: len(set(wanted) & set(headers[sign])))
    header = headers[delimiter]
    if not header:
        return []
    _check_columns(path, header, wanted)
    needed = max(map(header.index, wanted), default=-1) + 1
    # Strict, as a quote that is never closed would swallow the rest of the table.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        filled = (cells for cells in reader if any(cell.strip() for cell in cells))
        next(filled)
        for cells in filled:
            if len(cells) < needed:
                raise UserError(f"{path}: line {reader.line_num} is too short")
            if any(cells[len(header) :]):
                raise UserError(f"{path}: line {reader.line_num} is too long")
            rows.append(dict(zip_longest(header, cells[: len(header)], fillvalue="")))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file (line {reader.line_num}: {error})") from None
    return rows


def _header(text: str, delimiter: str) -> list[str]:
    """The first line that isn't blank, as column names; none where it can't be read so."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = ([cell.strip() for cell in cells] for cells in reader)
        return next((cells for cells in lines if any(cells)), [])
    except csv.Error:
        return []


def _check_columns(path: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in header:
            there = [" ".join(column.split()) for column in header]
            hint = did_you_mean(name, there)
            more = ", ..." if len(there) > LISTED else ""
            raise UserError(
                f"{path}: column {name!r} is missing, the columns are "
                f"{', '.join(there[:LISTED])}{more}{hint}"
            )
        if header.count(name) > 1:
            raise UserError(f"{path}: column {name!r} stands there twice")


def _parquet_rows(path: Path, wanted: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path}: a Parquet table needs pyarrow, pip install 'fed-mediffusion[data]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(path, schema.names, wanted)
            for name in wanted:
                if not _is_plain(schema.field(name).type):
                    raise UserError(
                        f"{path}: column {name!r} holds {schema.field(name).type}, "
                        "allowed are text, numbers, true and false"
                    )
            table = file.read(columns=list(wanted))
            cells = [[_cell(value) for value in table.column(n).to_pylist()] for n in wanted]
    except (pyarrow.ArrowException, ValueError, LookupError) as error:  # names, cells: not UTF-8
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a Parquet file ({reason})") from None
    return [dict(zip(wanted, row, strict=True)) for row in zip(*cells, strict=True)]


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in PARQUET_TEXT or any(
        test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean)
    )


def _cell(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def image_path(table: Path, name: str) -> str:
    """A relative path in its one plain form: `a.png` for `./a.png`.

    Args:
        table: the table or folder that gives the path, for the error.
        name: path with `/` between its parts.

    Raises:
        UserError: for an absolute path, one with `..` or backslashes, and one with signs that
            can't be printed.
    """
    path = PurePosixPath(name)
    if "\\" in name:
        raise UserError(f"{table}: image {name!r}, paths need / in place of backslashes")
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise UserError(f"{table}: image {name!r} is not a path below data.root")
    if not is_printable(name):
        raise UserError(f"{table}: image {name!r} has signs in its name that can't be printed")
    return str(path)


def image_names(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Checks that a table names each image once, by a plain file name.

    Raises:
        UserError: for a name that leads to another folder, and for one given twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise UserError(f"{path}: {name!r} is not a plain file name")
        if name in seen:
            raise UserError(f"{path}: image {name} is listed twice")
        seen.add(name)
    return tuple(names)


def file_stamp(root: Path, name: str) -> tuple[int, int] | None:
    """Bytes and modification time in ns of a file below the root, None where there is none."""
    try:
        status = (root / name).stat()
    except OSError:  # it will be on the list of bad images
        return None
    return status.st_size, status.st_mtime_ns
