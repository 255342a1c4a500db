"""The live view reads what a run writes while the run is still writing it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from mediffusion_core.run_io.run_progress import RunProgress
from simulations.engine.progress import LiveView


class Clock:
    """A clock that stands still until told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def add_line(folder: Path, **entry: object) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def add_site(folder: Path, name: str, **progress: object) -> None:
    site = folder / "sites" / name
    site.mkdir(parents=True, exist_ok=True)
    (site / "progress.json").write_text(json.dumps({"site": name, **progress}))


def plain_console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=40), text


def test_plain_mode_prints_each_event_once_on_one_line(tmp_path: Path) -> None:
    console, text = plain_console()
    with LiveView(tmp_path, console) as view:
        view.refresh()
        add_line(tmp_path, stage="autoencoder", round=1, rounds=3, loss=0.5, psnr=21.25, time=1.0)
        view.refresh()
        view.refresh()
        add_line(tmp_path, stage="joint", round=1, rounds=2, auc_macro=0.8125, time=9.0)
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("autoencoder: started")
    assert lines[1].startswith("autoencoder 1/3  loss 0.5  psnr 21.25")
    assert lines[2].startswith("joint: started")
    assert lines[3].startswith("joint 1/2  auc_macro 0.8125")


def test_a_site_that_joins_or_is_set_aside_has_a_line(tmp_path: Path) -> None:
    console, text = plain_console()
    aside = [{"site": "b", "kind": "train.joint", "reason": "sent no reply in time"}]
    with LiveView(tmp_path, console):
        add_line(tmp_path, stage="joint", round=2, rounds=3, joined=["a"], set_aside=aside)
    lines = text.getvalue().splitlines()
    assert lines[1:3] == ["a joined", "b set aside: train.joint sent no reply in time"]


def test_plain_mode_announces_a_stage_that_only_a_site_has_reached(tmp_path: Path) -> None:
    console, text = plain_console()
    with LiveView(tmp_path, console) as view:
        add_site(tmp_path, "site-0", stage="latents", step=1, steps=4)
        view.refresh()
        view.refresh()
    assert [line.split(":")[0] for line in text.getvalue().splitlines()] == ["latents"]


def test_lines_of_the_interrupted_part_of_a_run_are_not_repeated(tmp_path: Path) -> None:
    add_line(tmp_path, stage="joint", round=1, loss=0.9, time=1.0)
    console, text = plain_console()
    with LiveView(tmp_path, console) as view:
        add_line(tmp_path, stage="joint", round=2, loss=0.7, time=2.0)
        view.refresh()
    assert "0.7" in text.getvalue()
    assert "0.9" not in text.getvalue()


def test_an_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path)
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"stage": "joint", "rou')
    assert progress.read() == []
    with file.open("a") as rest:
        rest.write('nd": 4}\nnot json\n{"stage": "joint", "round": 5}\n')
    assert [entry["round"] for entry in progress.read()] == [4, 5]
    assert progress.read() == []


def test_missing_and_broken_site_files_are_no_error(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path)
    progress.read()
    add_site(tmp_path, "site-1", stage="joint", step=3, steps=9, loss=0.25)
    progress.read()
    (tmp_path / "sites/site-1/progress.json").write_text('{"stage": "jo')
    progress.read()
    assert progress.sites["site-1"]["step"] == 3
    assert progress.stage == "joint"


def test_time_left_is_unknown_before_two_rounds_and_then_counts_down(tmp_path: Path) -> None:
    clock = Clock()
    progress = RunProgress(tmp_path, clock)
    (tmp_path / "plan.json").write_text(json.dumps({"joint": 6}))
    add_line(tmp_path, stage="joint", round=1, time=100.0)
    progress.read()
    assert progress.time_left() is None
    add_line(tmp_path, stage="joint", round=2, time=110.0)
    progress.read()
    assert progress.time_left() == (pytest.approx(40.0), "run")
    clock.now += 4.0
    assert progress.time_left() == (pytest.approx(36.0), "run")


def test_an_evaluation_does_not_hide_the_time_left(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path, Clock())
    (tmp_path / "plan.json").write_text(json.dumps({"joint": 6}))
    for number in (1, 2):
        add_line(tmp_path, stage="joint", round=number, time=10.0 * number)
    add_line(tmp_path, stage="evaluation", round=2, rounds=6, time=22.0)
    progress.read()
    assert progress.time_left() == (pytest.approx(40.0), "run")


def test_time_left_speaks_of_the_stage_while_a_later_one_is_unmeasured(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path, Clock())
    (tmp_path / "plan.json").write_text(json.dumps({"autoencoder": 4, "joint": 6}))
    for number in (1, 2):
        add_line(tmp_path, stage="autoencoder", round=number, time=3.0 * number)
    progress.read()
    assert progress.time_left() == (pytest.approx(6.0), "autoencoder")


def test_the_gap_before_a_resumption_does_not_count_as_a_round(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path, Clock())
    for number, end in enumerate((0.0, 10.0, 20.0, 9000.0, 9010.0), start=1):
        add_line(tmp_path, stage="joint", round=number, rounds=7, time=end)
    progress.read()
    assert progress.time_left() == (pytest.approx(20.0), "run")


def test_a_terminal_shows_bars_losses_and_figures(tmp_path: Path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=20, color_system=None)
    add_line(tmp_path, stage="joint", round=2, rounds=6, auc_macro=0.75, time=1.0)
    add_site(tmp_path, "site-[x]", stage="joint", round=3, step=5, steps=20, loss=0.125)
    with LiveView(tmp_path, console) as view:
        view.refresh()
    shown = text.getvalue()
    for piece in ("joint 2/6", "site-[x]", "5/20", "loss 0.125", "auc_macro 0.75"):
        assert piece in shown
