"""The audit log: what it holds, what it notices, and what it sends to syslog."""

import json
import socket
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployment.command_line import app
from mediffusion_core.common.audit_log import AUDIT, SYSLOG, AuditLog, Line, read_lines
from mediffusion_core.common.errors import AuditError


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log of five entries."""
    kept = AuditLog(tmp_path / "kept" / "audit.jsonl")
    for number in range(5):
        kept.append("answer", site="uni", round=number, epsilon=0.1 * number, error=None)
    return kept


def verify(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["audit", "verify", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        return 2, str(result.exception)
    return result.exit_code, result.output.strip()


def edited(log: AuditLog, *, keep: slice = slice(None), change: str = "") -> None:
    lines = log.path.read_text().splitlines()[keep]
    if change:
        lines[1] = lines[1].replace('"round": 1', change)
    log.path.write_text("".join(f"{line}\n" for line in lines))


def test_a_sound_log_is_one_line_with_its_tip(log: AuditLog) -> None:
    code, said = verify(log.path)
    tip = log.tip_path.read_text().strip()
    assert (code, said) == (0, f"sound: entries 1 to 5, tip {tip}")
    assert verify(log.path, "--against", tip)[0] == 0
    assert verify(log.path, "--against", f"4:{'0' * 64}")[0] == 1
    assert "COUNT:DIGEST" in verify(log.path, "--against", "4")[1]


def test_entries_are_shown_by_run(log: AuditLog) -> None:
    log.append("reply", run="7", site="a b", outcome="counted")
    shown = CliRunner().invoke(app, ["audit", "show", str(log.path)]).output.splitlines()
    assert len(shown) == 6 and "answer site=uni round=0 epsilon=0.0" in shown[0]
    one = CliRunner().invoke(app, ["audit", "show", str(log.path), "--run", "7"]).output
    assert one.strip().endswith("reply run=7 site='a b' outcome=counted")


@pytest.mark.parametrize(
    ("keep", "change", "said"),
    [
        (slice(0, 3), "", "entries were cut off"),
        (slice(1, None), "", "entries before 2 are in files that were not given"),
        (slice(0, None, 2), "", "entry 3 does not follow"),
        (slice(None), '"round": 9', "line 2: the digest is not that of the line"),
        (slice(None), '"round": 1, "x": 1', "line 2: the digest is not that of the line"),
        (slice(None, None, -1), "", "does not follow"),
        (slice(0, 0), "", "ends with entry 0"),
    ],
)
def test_what_was_changed_shows(log: AuditLog, keep: slice, change: str, said: str) -> None:
    edited(log, keep=keep, change=change)
    assert said in verify(log.path)[1]
    assert verify(log.path)[0] == (0 if keep == slice(1, None) else 1)


def test_a_log_that_was_cut_off_is_not_continued(log: AuditLog) -> None:
    edited(log, keep=slice(0, 3))
    with pytest.raises(AuditError, match="lines were cut off"):
        log.append("answer")
    log.tip_path.unlink()
    with pytest.raises(AuditError, match=r"audit\.jsonl\.tip of the audit log is gone"):
        log.append("answer")
    assert len(log.path.read_text().splitlines()) == 3


def test_a_log_that_was_moved_away_is_continued_in_a_new_file(log: AuditLog) -> None:
    first = log.path.rename(log.path.with_name("audit.jsonl.1"))
    log.append("answer", round=5)
    assert [line.number for line in read_lines([first, log.path])] == [1, 2, 3, 4, 5, 6]
    assert "sound: entries 1 to 6" in verify(first, log.path)[1]
    assert "entries before 6 are in files that were not given" in verify(log.path)[1]
    first.unlink()
    assert verify(log.path)[0] == 0  # and the line above says what is missing


@pytest.mark.parametrize("written", [False, True])
def test_a_process_may_be_killed_while_it_writes(log: AuditLog, written: bool) -> None:
    """It leaves a part of a line, or a whole one without its tip."""
    before = log.tip_path.read_bytes()
    log.append("answer", round=5)
    last = log.path.read_bytes().splitlines(keepends=True)[-1]
    log.tip_path.write_bytes(before)
    if not written:
        log.path.write_bytes(log.path.read_bytes()[: -len(last) // 2])
    log.append("answer", round=6)
    rounds = [line.fields["round"] for line in read_lines([log.path])]
    assert rounds == ([0, 1, 2, 3, 4, 5, 6] if written else [0, 1, 2, 3, 4, 6])
    assert verify(log.path)[0] == 0


def append(path: Path) -> None:
    for _ in range(10):
        AuditLog(path).append("answer")


def test_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(append, [path] * 3))
    assert len(list(read_lines([path]))) == 30


def test_a_log_that_can_not_be_written_is_an_error_without_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="can't be written: "):
        AuditLog(tmp_path / "file" / "audit.jsonl").append("answer")


def test_long_and_odd_values_stay_on_one_short_line(log: AuditLog) -> None:
    log.append("answer", kind="x\n\x1b[2J" + "y" * 10**6)
    last = log.path.read_text().splitlines()[-1]
    assert len(last) < 1000 and "\x1b" not in last
    shown = CliRunner().invoke(app, ["audit", "show", str(log.path)]).output
    assert "\x1b" not in shown and len(shown.splitlines()) == 6


def test_each_line_goes_to_syslog_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(10)
        monkeypatch.setenv(SYSLOG, f"127.0.0.1:{syslog.getsockname()[1]}")
        tip = AuditLog(tmp_path / "audit.jsonl").append("answer", site="uni")
        received = syslog.recv(4096).decode().rstrip("\0")
    line = Line.parse(received[received.index("{") :])
    assert (line.number, line.digest, line.fields["site"]) == (tip.count, tip.digest, "uni")
    assert received.startswith("<86>fed-mediffusion: ")  # authpriv, information


@pytest.mark.parametrize("address", ["/none/syslog", "syslog.invalid:514"])
def test_a_syslog_that_is_away_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    monkeypatch.setenv(SYSLOG, address)
    AuditLog(tmp_path / "audit.jsonl").append("answer")
    assert f"audit: syslog {address}" in caplog.text
    assert len(list(read_lines([tmp_path / "audit.jsonl"]))) == 1


def test_the_environment_names_the_log(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUDIT, raising=False)
    assert AuditLog.of_environment() is None
    assert f"set {AUDIT}" in verify()[1]
    monkeypatch.setenv(AUDIT, str(log.path))
    assert AuditLog.of_environment() == log and verify()[0] == 0


def test_a_line_holds_its_fields_in_plain_json(log: AuditLog) -> None:
    first = json.loads(log.path.read_text().splitlines()[0])
    assert {"number": 1, "event": "answer", "site": "uni", "error": None}.items() <= first.items()
