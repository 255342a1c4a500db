"""Where a run stands, as people and as Prometheus read it."""

import json
import socket
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployment import command_line
from deployment.metrics import METRICS, serve_metrics
from mediffusion_core.common.audit_log import AUDIT, AuditLog
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from simulations.cli import main


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditLog:
    kept = AuditLog(tmp_path / "audit.jsonl")
    monkeypatch.setenv(AUDIT, str(kept.path))
    return kept


@pytest.fixture
def run(tmp_path: Path, log: AuditLog) -> RunFolder:
    """A run at the server after three joint rounds; one site has failed in the last one."""
    folder = RunFolder(tmp_path / "runs" / "flwr-7")
    folder.path.mkdir(parents=True)
    write_json(folder.path / "settings.json", {"settings_hash": "x"})
    folder.record(stage="autoencoder", round=2, rounds=2, sites={"uni": {}})
    folder.record(stage="joint", round=3, rounds=20, sites={"uni": {}})
    folder.record(stage="evaluation", round=3, rounds=20)
    folder.metrics.open("a").write('{"stage": "joi')  # in the midst of a line
    folder.point_latest()
    log.append("run", run="7", outcome="started")
    for number in (2, 3):
        for site, outcome in (("uni", "counted"), ("west", "failed" if number == 3 else "counted")):
            log.append("reply", site=site, kind="train.joint", round=number, outcome=outcome)
    return folder


@pytest.fixture
def site(tmp_path: Path, log: AuditLog) -> Path:
    """The runs of a site, in the midst of its second one."""
    runs = tmp_path / "site"
    for name, time, stage in (("a", 1.0, "joint"), ("b", 2.0, "autoencoder")):
        folder = runs / name / "sites" / "uni"
        folder.mkdir(parents=True)
        progress = {"site": "uni", "stage": stage, "round": 4, "time": time, "step": 1, "steps": 9}
        (folder / "progress.json").write_text(json.dumps(progress))
    log.append("answer", site=None, kind="query.census", round=0, outcome="refused", epsilon=None)
    log.append("answer", site="uni", kind="query.census", round=0, outcome="answered", epsilon=0.25)
    log.append("answer", site="uni", kind="query.encode", round=1, outcome="answered", epsilon=None)
    return runs


def shown(*arguments: object, app: object = main.app) -> list[str]:
    result = CliRunner().invoke(app, ["status", *map(str, arguments)])  # type: ignore[arg-type]
    return [str(result.exception)] if result.exception else result.output.splitlines()


def test_a_server_shows_round_sites_last_answers_and_disk(run: RunFolder) -> None:
    lines = shown(run.path)
    assert lines[0] == "run      flwr-7, running"
    assert lines[1] == "round    joint 3 of 20"
    assert lines[2].endswith("GB free")
    assert [line.split()[1:2] + line.split()[3:] for line in lines[3:]] == [
        ["uni", "train.joint", "counted"],
        ["west", "train.joint", "failed"],
    ]
    private = {"status": "completed", "privacy": {"sites": {"uni": {"epsilon": 7.5}}}}
    write_json(run.path / "summary.json", private)
    lines = shown(run.path)
    assert lines[0] == "run      flwr-7, completed" and lines[3].endswith("ε = 7.5")


def test_the_newest_run_is_the_default(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent.parent)
    assert shown()[0] == "run      flwr-7, running"


def test_a_site_shows_its_newest_run_and_what_its_patients_have_spent(site: Path) -> None:
    lines = shown(site, app=command_line.app)
    assert lines[:2] == ["run      b", "round    autoencoder 4"]
    (line,) = lines[3:]
    assert line.split()[1] == "uni" and line.endswith("query.encode answered  ε = 0.25")


def test_a_site_before_its_first_run_and_a_missing_folder(tmp_path: Path) -> None:
    assert shown(tmp_path)[:2] == ["run      none", "round    none yet"]
    assert "is no folder of a run" in shown(tmp_path / "none")[0]


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_prometheus_reads_the_same_and_only_what_is_new(
    run: RunFolder, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv(METRICS, f"127.0.0.1:{port}")
    serve_metrics(run.path.parent / "latest")
    first = scraped(port)
    assert first['fed_mediffusion_round{stage="joint"}'] == 3
    answers = 'fed_mediffusion_answers_total{{kind="train.joint",outcome="{}",site="{}"}}'
    assert first[answers.format("counted", "uni")] == 2
    assert first[answers.format("failed", "west")] == 1
    assert first["fed_mediffusion_disk_free_bytes"] > 0
    log.path.rename(log.path.with_name("audit.jsonl.1"))
    log.append("reply", site="uni", kind="train.joint", round=4, outcome="counted")
    log.append("answer", site="uni", kind="train.joint", round=4, outcome="answered", epsilon=1.5)
    second = scraped(port)
    assert second[answers.format("counted", "uni")] == 3
    assert second['fed_mediffusion_epsilon{site="uni"}'] == 1.5
    name = 'fed_mediffusion_last_answer_timestamp_seconds{site="uni"}'
    assert second[name] >= first[name] > 1.7e9


def test_metrics_are_off_unless_an_address_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(METRICS, raising=False)
    serve_metrics(tmp_path)
    for given in ("9100", "127.0.0.1:", "127.0.0.1:x"):
        monkeypatch.setenv(METRICS, given)
        with pytest.raises(UserError, match="allowed is HOST:PORT"):
            serve_metrics(tmp_path)
