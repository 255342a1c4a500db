"""A sweep with real runs: interrupted, continued, and complete."""

import csv
import json
import signal
from pathlib import Path

import pytest
from integration.processes import start

from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.run_io.run_folder import RunFolder


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_runs_no_cell_twice(
    shortest: tuple[str, ...], few: tuple[str, ...], tmp_path: Path, temporary: Path
) -> None:
    fixed = [one for one in (*shortest, *few) if not one.startswith("seed=")]
    store = f"data.store={tmp_path / 'store'}"
    command = ["sweep", *fixed, store, "seed=1,2", "--workers", "1", "--folder", "sweep"]
    sweep = tmp_path / "sweep"

    first = start(command, tmp_path, temporary)
    first.wait_until(
        lambda: any(list_checkpoints(run / "checkpoints") for run in sweep.glob("cells/*/run"))
    )
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 130
    assert "the same command goes on from here" in first.out.read_text()
    (begun,) = sweep.glob("cells/*/run")
    newest = list_checkpoints(begun / "checkpoints")[-1]
    before = RunFolder(begun).history()
    rounds = [(line["stage"], line["round"]) for line in before]
    # The lines after the newest checkpoint are written again.
    before = before[: 1 + rounds.index((newest.stage, newest.round_number))]
    assert before and not (begun / "summary.json").exists()

    second = start(command, tmp_path, temporary)
    assert second.wait() == 0, second.err.read_text()
    assert RunFolder(begun).history()[: len(before)] == before  # resumed, not begun again
    assert second.out.read_text().splitlines()[-1] == "sweep/sweep.csv"
    with (sweep / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["status"]) for row in rows] == [("1", "finished"), ("2", "finished")]
    summary = json.loads((sweep / rows[0]["folder"] / "summary.json").read_text())
    assert float(rows[0]["validation_auc_pooled"]) == summary["auc_pooled"]
    assert float(rows[0]["test_auc_macro"]) == summary["auc_macro"]
    assert rows[0]["settings_hash"] == summary["settings_hash"]

    logs = list(sweep.glob("cells/*/log.txt"))
    written = {path: path.stat().st_mtime_ns for path in [*logs, *sweep.glob("cells/*/run/*")]}
    third = start(command, tmp_path, temporary)
    assert third.wait() == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}
