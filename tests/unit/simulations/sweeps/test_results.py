"""Tables of a sweep, from runs that are already there."""

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from mediffusion_core.run_io.run_folder import write_json
from simulations.sweeps.candidate import Candidate, candidate_of
from simulations.sweeps.cell import RUN
from simulations.sweeps.results import CSV, JSON, Results
from simulations.sweeps.space import parse_space

OVERRIDES = ["model=tiny,small", "training.joint.learning_rate=1e-3,2e-3", "seed=1,2"]
VALIDATION = {("tiny", 1): 0.6, ("tiny", 2): 0.7, ("small", 1): 0.8, ("small", 2): None}


@pytest.fixture
def grid(tmp_path: Path) -> list[Candidate]:
    """Four candidates; both rates of each model have the same figures."""
    space = parse_space(OVERRIDES)
    candidates = [candidate_of(space, chosen) for chosen in space.grid()]
    for candidate in candidates:
        for cell in candidate.cells:
            auc = VALIDATION[candidate.chosen["model"], cell.settings.seed]
            run = cell.folder(tmp_path) / RUN
            run.mkdir(parents=True)
            status = "failed" if auc is None else "completed"
            summary = {"status": status, "auc_pooled": auc, "auc_macro": 0.5, "seconds": 60.0}
            write_json(run / "summary.json", {**summary, "fid": None, "commit": "abc"})
    return candidates


def test_candidates_are_sorted_by_the_mean_of_their_finished_seeds(
    grid: list[Candidate], tmp_path: Path
) -> None:
    lost = grid[-1].cells[-1]
    found = Results(tmp_path, grid, {lost.settings_hash: "it broke"}, "auc_pooled")
    assert [one["changed"]["model"] for one in found.ranked] == ["small", "small", "tiny", "tiny"]
    best, worst = found.ranked[0], found.ranked[-1]
    assert (best["validation"], best["standard_error"], best["finished"]) == (0.8, None, 1)
    assert worst["validation"] == pytest.approx(0.65)
    assert worst["standard_error"] == pytest.approx(0.05)
    with Console(record=True, width=160) as console:
        found.print(console)
    printed = console.export_text()
    assert "0.650 ± 0.050" in printed and "1 of 2" in printed
    assert "Choose by the validation figure" in printed


def test_the_table_has_a_line_for_each_cell_and_names_test_figures(
    grid: list[Candidate], tmp_path: Path
) -> None:
    lost = grid[-1].cells[-1]
    found = Results(tmp_path, grid, {lost.settings_hash: "it broke"}, "auc_pooled")
    path = found.write({"command": OVERRIDES})
    assert path == tmp_path / CSV
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert list(rows[0]) == [
        "model",
        "training.joint.learning_rate",
        "seed",
        "status",
        "settings_hash",
        "commit",
        "selected_round",
        "validation_auc_pooled",
        "test_auc_macro",
        "test_fid",
        "test_psnr",
        "seconds",
        "folder",
    ]
    assert (rows[0]["model"], rows[0]["seed"], rows[0]["validation_auc_pooled"]) == (
        "tiny",
        "1",
        "0.6",
    )
    assert rows[0]["settings_hash"] == grid[0].cells[0].settings.fingerprint()
    assert [row["status"] for row in rows[-3:]] == ["not finished", "finished", "failed"]
    written = json.loads((tmp_path / JSON).read_text())
    assert written["command"] == OVERRIDES and written["objective"] == "auc_pooled"
    assert written["cells"][-1]["failure"] == "it broke"
    assert written["cells"][0]["overrides"] == [
        "model=tiny",
        "training.joint.learning_rate=0.001",
        "seed=1",
    ]
    assert len(written["candidates"]) == 4


def test_the_auc_of_a_classifier_that_was_not_trained_is_no_figure(tmp_path: Path) -> None:
    space = parse_space(["seed=1,2", "training.joint.classification_weight=0"])
    candidate = candidate_of(space, {})
    for cell in candidate.cells:
        (cell.folder(tmp_path) / RUN).mkdir(parents=True)
        summary = {"status": "completed", "auc_pooled": 0.5}
        write_json(cell.folder(tmp_path) / RUN / "summary.json", summary)
    found = Results(tmp_path, [candidate], {}, "auc_pooled")
    assert found.rows[0]["status"] == "finished"
    assert found.ranked[0]["validation"] is None


def test_a_proposed_number_has_four_digits_in_the_table_and_all_in_the_file(tmp_path: Path) -> None:
    rate = 0.0008051635067908764
    rates = f"training.joint.learning_rate={rate},0.10001"
    space = parse_space([rates, "model=tiny,small", "seed=2147483647"])
    candidates = [candidate_of(space, chosen) for chosen in space.grid()]
    found = Results(tmp_path, candidates, {}, "auc_pooled")
    with Console(record=True, width=160) as console:
        found.print(console)
    cells = {cell.strip() for cell in console.export_text().replace("\n", "│").split("│")}
    assert {"0.0008052", "0.10001", "tiny"} <= cells
    assert str(rate) in found.write({}).read_text()
