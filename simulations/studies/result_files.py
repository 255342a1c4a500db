"""The files that studies write: `results.json`, a page of Markdown beside it, and a CSV table."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mediffusion_core.common.files import replacing
from mediffusion_core.run_io.run_folder import write_json

RESULTS = "results.json"


def write_results(folder: Path, results: Mapping[str, Any], page: str) -> Path:
    """Writes the figures as `results.json` and the page as `results.md`; returns the page's path.

    The folder is made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, results)
    path = folder / "results.md"
    path.write_text(page, encoding="utf-8")
    return path


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table: figures with six digits, and nothing where one is missing (nan)."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(columns)
        lines.writerows([_cell(one) for one in row] for row in rows)


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
