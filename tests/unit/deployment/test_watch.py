"""The live view: what it says of a run, what it serves of the folder, and what it does not."""

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from deployment.watch.server import WatchServer
from deployment.watch.state import open_run, read_state
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from simulations.cli.main import app

NOW = 2_000_000_000.0


def add_line(folder: RunFolder, age: float = 10.0, **line: object) -> None:
    folder.record(**line)
    os.utime(folder.metrics, (NOW - age, NOW - age))


def add_round(folder: RunFolder, number: int, **more: object) -> None:
    line = {"stage": "joint", "round": number, "rounds": 6, "time": 100.0 + 60 * number}
    contacts = {"uni": NOW - 20}
    add_line(folder, **line, loss=0.5, sites={"uni": {}}, contacts=contacts, **more)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A private run in its third joint round; the site `west` failed in the second."""
    folder = RunFolder(tmp_path / "run")
    folder.pictures.mkdir(parents=True)
    write_json(folder.path / "settings.json", {"privacy": {"enabled": True, "target_delta": 1e-5}})
    write_json(folder.path / "plan.json", {"joint": 6})
    promised = {name: {"epsilon": epsilon} for name, epsilon in (("uni", 2.0), ("west", 3.5))}
    add_line(
        folder, stage="census", round=1, rounds=1, time=1.0,
        sites={"uni": {"images": 60}, "west": {"images": 40}},
        contacts={"uni": NOW - 300, "west": NOW - 200},
        privacy={"unit": "patient", "target_delta": 1e-5, "sites": promised},
    )  # fmt: skip
    add_round(folder, 1)
    aside = [{"site": "west", "kind": "train.joint", "reason": "sent no reply in time"}]
    add_round(folder, 2, set_aside=aside)
    add_line(folder, stage="evaluation", round=2, rounds=6, time=225.0, auc_macro=0.8125)
    Image.new("L", (4, 4)).save(folder.pictures / "curves.png")
    return folder


def test_a_running_run_has_its_round_its_sites_and_its_epsilon(folder: RunFolder) -> None:
    own = folder.path / "sites" / "uni"
    own.mkdir(parents=True)
    work = {"site": "uni", "stage": "joint", "round": 3, "time": NOW - 1, "step": 2, "steps": 9}
    write_json(own / "progress.json", work)
    state = read_state(folder.path, NOW)
    facts = dict(state.facts)
    assert (state.status, facts["Last round"]) == ("running", "evaluation 2/6")
    assert facts["Last line"] == "10 s ago"
    assert facts["ε"].startswith("3.50 for one patient")
    uni, west = state.sites
    assert (uni.name, uni.contact, uni.epsilon) == ("uni", "1 s ago", "2.00")
    assert uni.work == "joint 3, step 2 of 9"
    assert (west.contact, west.work) == ("3 min 20 s ago", "")
    assert west.note == "train.joint: sent no reply in time"
    assert ("AUC, test", "0.812") in state.figures
    assert not state.has_ended


def test_time_left_is_that_of_the_rounds_less_the_time_since_the_last_line(
    folder: RunFolder,
) -> None:
    def left() -> str:
        return dict(read_state(folder.path, NOW).facts)["Time left"]

    assert left() == "about 3 min 50 s"  # 4 rounds of a minute, less the 10 s since the last
    add_round(folder, 3)
    assert left() == "about 2 min 50 s"
    folder.rewrite(folder.history()[:2])
    assert left() == "unknown before two rounds of the stage"


def test_an_ended_run_has_the_figures_of_its_summary(folder: RunFolder) -> None:
    summary = folder.path / "summary.json"
    write_json(summary, {"status": "failed", "error": "too few sites"})
    os.utime(summary, (NOW, NOW))
    state = read_state(folder.path, NOW)
    assert (state.status, dict(state.facts)["Error"]) == ("failed", "too few sites")
    add_round(folder, 3)
    os.utime(folder.metrics, (NOW + 1, NOW + 1))  # it was resumed
    assert read_state(folder.path, NOW).status == "running"
    write_json(summary, {"status": "completed", "auc_macro": 0.875, "census": {"uni": {}}})
    state = read_state(folder.path, NOW)
    assert state.has_ended and ("AUC, test", "0.875") in state.figures
    assert "Time left" not in dict(state.facts)


def test_a_folder_that_is_no_run_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        open_run(tmp_path)
    folder.metrics.write_text("[]\n")
    with pytest.raises(UserError, match="not a run's"):
        read_state(folder.path, NOW)


@pytest.mark.parametrize(
    "name", ["summary.json", "pictures", "pictures/counterfactual.json", "sites", "sites/uni"]
)
def test_no_link_is_followed(folder: RunFolder, tmp_path: Path, name: str) -> None:
    path = folder.path / name
    if path.is_dir():
        path.rename(tmp_path / "moved")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="is a link"):
        read_state(folder.path, NOW)


# Over HTTP


@pytest.fixture
def server(folder: RunFolder) -> Iterator[WatchServer]:
    with WatchServer(folder.path, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answer(
    server: WatchServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={"Host": host} if host else {})
    got = connection.getresponse()
    return got.status, got.read().decode("latin-1"), got.headers


def test_the_page_and_its_state_grow_with_the_run(server: WatchServer, folder: RunFolder) -> None:
    status, page, headers = answer(server, "/")
    assert status == 200 and "0.812" in page and "/watch.js" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    before = json.loads(answer(server, "/state.json")[1])
    assert json.loads(answer(server, "/state.json")[1])["version"] == before["version"]
    add_round(folder, 3)
    after = json.loads(answer(server, "/state.json")[1])
    assert before["version"] != after["version"]
    assert ["Last round", "joint 3/6"] in after["facts"]


def test_a_picture_of_the_run_is_served(server: WatchServer, folder: RunFolder) -> None:
    status, picture, headers = answer(server, "/pictures/curves.png?1")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert picture.encode("latin-1") == (folder.pictures / "curves.png").read_bytes()
    status, body, headers = answer(server, "/pictures/curves.png", "HEAD")
    assert (status, body, int(headers["Content-Length"])) == (200, "", len(picture))


@pytest.mark.parametrize(
    "path",
    [
        "/metrics.jsonl",
        "/settings.json",
        "/pictures",
        "/pictures/",
        "/pictures/../settings.json",
        "/pictures/%2e%2e%2fsettings.json",
        "/pictures/..%2f..%2fsecret.png",
        "/pictures//etc/passwd",
        "/pictures/link.png",
        "/pictures/rounds/0002/counterfactuals.png",
        "//elsewhere/",
    ],
)
def test_nothing_else_is_served(server: WatchServer, folder: RunFolder, path: str) -> None:
    secret = folder.path.parent / "secret.png"
    Image.new("L", (4, 4)).save(secret)
    (folder.pictures / "link.png").symlink_to(secret)
    inner = folder.round_pictures(2)
    inner.mkdir(parents=True)
    Image.new("L", (4, 4)).save(inner / "counterfactuals.png")
    assert answer(server, path)[0] == 404


def test_it_only_reads(server: WatchServer, folder: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    for path in ("/", "/state.json", "/watch.js", "/pictures/curves.png"):
        assert answer(server, path)[0] == 200
    for method in ("POST", "PUT", "DELETE"):
        assert answer(server, "/", method)[0] == 501
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_another_name_of_this_machine_gets_nothing(server: WatchServer) -> None:
    assert answer(server, "/", host=f"localhost:{server.server_port}")[0] == 200
    for host in ("elsewhere.example", f"elsewhere.example:{server.server_port}", "[", "127.0.0.2"):
        assert answer(server, "/", host=host)[0] == 404


def test_a_file_that_cannot_be_read_is_named_without_its_place(
    server: WatchServer, folder: RunFolder
) -> None:
    (folder.path / "summary.json").symlink_to(folder.metrics)
    status, page, _ = answer(server, "/")
    assert status == 503 and "run/summary.json is a link" in page
    assert str(folder.path) not in page


def test_an_address_that_is_taken_is_one_line(folder: RunFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
            WatchServer(folder.path, "127.0.0.1", port)


# In a terminal


def test_the_text_says_the_same(folder: RunFolder) -> None:
    shown = CliRunner().invoke(app, ["watch", str(folder.path), "--text"])
    assert shown.exit_code == 0, shown.output
    for text in ("evaluation 2/6", "west", "sent no reply in time", "AUC, test", "0.812", "3.50"):
        assert text in shown.output
