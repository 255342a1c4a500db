"""Tables and folders as data sets publish them, checked before anything relies on them."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from mediffusion_core.errors import UserError
from mediffusion_core.settings import DataSettings

Stamps = dict[str, tuple[str, int, int]]
"""File name to (path relative to the root, bytes, modification time in ns)."""


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
    """Rows of a CSV file with a header, at least the columns asked for.

    Raises:
        UserError: missing file, missing columns, a row that is too short, or no CSV at all.
    """
    if not path.is_file():
        raise UserError(f"data.root={path.parent}: {path.name} is missing")
    wanted = tuple(columns)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in wanted if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: column {missing[0]!r} is missing")
            rows = []
            for row in reader:
                if any(row[name] is None for name in wanted):
                    raise UserError(f"{path}: line {reader.line_num} is too short")
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if not rows:
        raise UserError(f"{path}: the table lists no images")
    return rows


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


def list_files(root: Path, folders: Iterable[Path], suffix: str) -> Stamps:
    """Files of some folders, by name; the first folder wins where a name occurs twice."""
    found: Stamps = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix) and entry.name not in found and entry.is_file():
                    status = entry.stat()
                    relative = str((folder / entry.name).relative_to(root))
                    found[entry.name] = (relative, status.st_size, status.st_mtime_ns)
    return found
