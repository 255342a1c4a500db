"""The files that every study writes: `results.json` and a page of Markdown beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
