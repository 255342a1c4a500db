"""Cells that run side by side: each once, a failed one does not stop the others."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from simulations.engine.cell_pool import CellPool
from simulations.engine.cells import Cell

PROGRAM = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
name = json.loads((folder / "cell.json").read_text())["name"]
with (folder / "starts").open("a") as file:
    file.write(os.environ["OMP_NUM_THREADS"] + "\\n")
if name == "broken":
    sys.exit("it broke")
if name == "killed":
    os.kill(os.getpid(), 9)
if name == "slow":
    time.sleep(600)
(folder / "figures.json").write_text(json.dumps({"figure": name}))
"""


@dataclass(frozen=True)
class Named(Cell):
    module: ClassVar[str] = "program_of_cells"

    name: str

    @property
    def title(self) -> str:
        return f"cell {self.name}"

    @property
    def settings_hash(self) -> str:
        return self.name

    @property
    def threads(self) -> int:
        return 3

    def description(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def result(self, figures: Mapping[str, Any]) -> str:
        return f"is {figures['figure']}"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "program_of_cells.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    return tmp_path


def run(root: Path, *names: str) -> tuple[dict[str, str], str]:
    """The failures of the cells, and the lines printed."""
    console = Console(record=True, width=300)
    with CellPool(root, 2, console) as pool:
        pool.add(map(Named, names))
        pool.run_all()
    return pool.failures, console.export_text()


def starts(root: Path, name: str) -> list[str]:
    return (root / "cells" / name / "starts").read_text().split()


def test_each_cell_runs_once_with_its_threads(root: Path) -> None:
    failures, printed = run(root, "a", "b", "a")
    assert failures == {}
    assert "cell a: is a" in printed and "2/2" in printed
    run(root, "a", "b")
    assert starts(root, "a") == starts(root, "b") == ["3"]


def test_failed_cells_are_named_and_run_again_and_the_others_go_on(root: Path) -> None:
    failures, printed = run(root, "broken", "killed", "a")
    log = root / "cells" / "broken" / "log.txt"
    assert failures["broken"] == f"cell broken failed: it broke (full log: {log})"
    assert failures["killed"].startswith("cell killed failed: killed by SIGKILL")
    assert printed.count(" failed: ") == 2 and "cell a: is a" in printed
    run(root, "broken")
    assert len(starts(root, "broken")) == 2


def test_ctrl_c_ends_the_processes_of_all_cells(root: Path) -> None:
    def interrupt() -> None:
        while not (root / "cells" / "slow" / "starts").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with CellPool(root, 1, Console(quiet=True)) as pool:
        pool.add([Named("slow"), Named("a")])
        pool.step()
        process = pool._running[0].process
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            pool.run_all()
    assert process.returncode == -signal.SIGTERM
    assert not (root / "cells" / "a").exists()
