"""The launcher with a real ``flwr run`` of a small app."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import collect_files
from integration.processes import LIMIT

from simulations.engine.app_bundle import assemble_app
from simulations.engine.flower_log import error_line, ray_did_not_start
from simulations.engine.launcher import Launch, concurrent_sites, launch
from simulations.engine.processes import marked_processes, simulation_process

AWKWARD = "sites=[1,2] name='St. \"Anna\"' path=C:\\new x=${y} = é"

PYPROJECT = """
[project]
name = "tiny-federation"
version = "0.1.0"
description = "A federation that learns nothing."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "{server}:app"
clientapp = "{client}:app"

[tool.flwr.app.config]
config-name = ""
overrides = ""
run-folder = ""
"""

SERVER = """
import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    folder = Path(config["run-folder"])
    (folder / "marker").write_text(os.environ["FED_MEDIFFUSION_LAUNCH"])
    (folder / "config.json").write_text(json.dumps(dict(config)))
    if config["config-name"] == "raise" and not (folder / "tried").exists():
        (folder / "tried").touch()
        raise Exception("The current node timed out during startup. This could happen")
    if config["config-name"] == "raise":
        raise ValueError("the phantom has no spine")
    # The server starts before Flower has registered the simulated nodes.
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.05)
    order = ConfigRecord({"mode": config["config-name"], "folder": config["run-folder"]})
    messages = [Message(RecordDict({"order": order}), node, "train") for node in nodes]
    replies = list(grid.send_and_receive(messages))
    if any(reply.has_error() for reply in replies):
        (folder / "error.txt").write_text("fed-mediffusion: a site was lost in round 1\\n")
        raise RuntimeError("no reply from every site")
    answers = [dict(reply.content["answer"]) for reply in replies]
    (folder / "answers.json").write_text(json.dumps(answers))
"""

CLIENT = """
import os
import signal
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    order = message.content["order"]
    partition = context.node_config["partition-id"]
    (Path(order["folder"]) / f"site-{partition}").touch()
    if order["mode"] == "kill" and partition == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if order["mode"] == "wait":
        time.sleep(300)
    answer = {
        "partition": partition,
        "file": __file__,
        "folder": os.getcwd(),
        "threads": os.environ["OMP_NUM_THREADS"],
    }
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    package = folder / "tiny"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        PYPROJECT.format(server="tiny.server", client="tiny.client")
    )
    (package / "__init__.py").touch()
    (package / "server.py").write_text(SERVER)
    (package / "client.py").write_text(CLIENT)
    return folder


def plan(app: Path, mode: str, overrides: str = "") -> Launch:
    run_folder = app.parent / "run"
    run_folder.mkdir()
    return Launch(
        assemble=partial(shutil.copytree, app, dirs_exist_ok=True),
        run_config={
            "config-name": mode,
            "overrides": overrides,
            "run-folder": str(run_folder),
        },
        num_sites=2,
        cpus_per_site=1,
        run_folder=run_folder,
        log_file=run_folder / "flwr.log",
    )


def left_behind(run_folder: Path) -> list[int]:
    """The running processes that have the server's marker."""
    return marked_processes((run_folder / "marker").read_text())


def test_a_run_completes_with_its_settings_and_leaves_no_process(app: Path) -> None:
    given = plan(app, "complete", AWKWARD)
    seen_alive: list[int] = []

    def on_tick() -> None:
        if (given.run_folder / "site-0").exists() and not seen_alive:
            seen_alive.append(len(left_behind(given.run_folder)))

    outcome = launch(given, on_tick)

    log = given.log_file.read_text()
    assert outcome.status == "completed", (outcome, log)
    assert json.loads((given.run_folder / "config.json").read_text())["overrides"] == AWKWARD
    answers = json.loads((given.run_folder / "answers.json").read_text())
    assert sorted(answer["partition"] for answer in answers) == [0, 1]
    assert {answer["threads"] for answer in answers} == {"1"}
    for answer in answers:
        # From the bundle, not from the folder that the app was submitted from.
        assert not Path(answer["file"]).is_relative_to(app)
        assert not Path(answer["folder"]).is_relative_to(Path.cwd())
        assert not Path(answer["folder"]).exists()
    assert seen_alive and seen_alive[0] > 3
    assert left_behind(given.run_folder) == []


def test_a_server_that_raises_is_a_failed_run_that_names_the_error(app: Path) -> None:
    """Before that, its Ray takes too long to start, and is started once more."""
    given = plan(app, "raise")
    (given.run_folder / "error.txt").write_text("of an earlier attempt\n")
    outcome = launch(given)
    log = given.log_file.read_text()
    assert "startup. This could happen; Ray is started once more" in log
    assert (outcome.status, outcome.detail) == ("failed", "ValueError: the phantom has no spine")
    assert left_behind(given.run_folder) == []


def test_a_killed_site_is_a_failed_run_in_the_words_of_the_app(app: Path) -> None:
    given = plan(app, "kill")
    outcome = launch(given)
    assert (outcome.status, outcome.detail) == ("failed", "a site was lost in round 1")
    assert left_behind(given.run_folder) == []


def test_a_signal_stops_the_run_and_keeps_its_files(app: Path) -> None:
    number = signal.SIGTERM  # `noted_signals` handles the others alike, see test_processes.py
    given = plan(app, "wait")
    before = signal.getsignal(number)

    def on_tick() -> None:
        if (given.run_folder / "site-0").exists():
            os.kill(os.getpid(), number)

    outcome = launch(given, on_tick)

    assert outcome.status == "stopped"
    assert number.name in outcome.detail
    assert (given.run_folder / "config.json").is_file()
    assert left_behind(given.run_folder) == []
    assert signal.getsignal(number) == before


def test_a_killed_simulation_process_is_a_failed_run(app: Path) -> None:
    given = plan(app, "wait")
    killed: list[int] = []

    def on_tick() -> None:
        if (given.run_folder / "site-0").exists() and not killed:
            simulation = simulation_process((given.run_folder / "marker").read_text())
            if simulation is not None:
                os.kill(simulation, signal.SIGKILL)
                killed.append(simulation)

    outcome = launch(given, on_tick)

    assert len(killed) == 1
    assert (outcome.status, outcome.detail) == ("failed", "the simulation process was killed")
    assert left_behind(given.run_folder) == []


def test_what_a_killed_launcher_started_ends_with_it(app: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from integration.test_launcher import launch, plan; "
        "launch(plan(Path(sys.argv[1]), 'wait'))"
    )
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", program, str(app)]
    launcher = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
    run_folder, deadline = app.parent / "run", time.monotonic() + LIMIT
    while not (run_folder / "site-0").exists():
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert len(left_behind(run_folder)) > 3
    launcher.kill()
    launcher.wait()
    while alive := left_behind(run_folder):
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def test_an_app_that_flower_refuses_fails_the_run_with_the_reason(app: Path) -> None:
    given = plan(app, "complete")
    (app / "pyproject.toml").write_text('[project]\nname = "tiny"\nversion = "0.1.0"\n')
    outcome = launch(given)
    assert outcome.status == "failed"
    assert "Missing [tool.flwr.app] section" in outcome.detail


@pytest.mark.parametrize(
    ("num_sites", "cpus_per_site", "cores", "expected"),
    [(4, 1.0, 2, 2), (4, 0.5, 2, 4), (2, 1.0, 16, 2), (4, 8.0, 2, 1), (5, 0.1, 1, 5)],
)
def test_sites_at_once_fit_the_cores(
    num_sites: int, cpus_per_site: float, cores: int, expected: int
) -> None:
    assert concurrent_sites(num_sites, cpus_per_site, cores) == expected


def test_the_line_for_the_user_wins_over_later_exceptions() -> None:
    log = (
        "\x1b[36m(ClientAppActor pid=41)\x1b[0m fed-mediffusion: no images below /data\n"
        "Traceback (most recent call last):\nRuntimeError: a site failed\n"
    )
    assert error_line(log) == "no images below /data"


def test_flowers_wrapper_does_not_hide_the_cause() -> None:
    log = (
        "KeyError: 'latents'\n\nThe above exception was the direct cause\n"
        "RuntimeError: An error was encountered. Ending simulation.\n"
        "2026-01-01 INFO Error: none of this is an exception\n"
    )
    assert error_line(log) == "KeyError: 'latents'"
    assert error_line("all is well\n") is None


def test_a_bare_exception_is_the_cause() -> None:
    log = (
        'Traceback (most recent call last):\n  File "node.py", line 423, in __init__\n'
        "    raise Exception(\nException: The current node timed out during startup. This could "
        "happen because some of the raylet failed to startup.\n"
        "RuntimeError: Simulation Runtime crashed.\n"
        "RuntimeError: An error was encountered. Ending simulation.\n"
    )
    assert (error_line(log) or "").startswith("Exception: The current node timed out during")
    assert ray_did_not_start(log) and not ray_did_not_start("ValueError: startup\n")


def test_an_error_that_only_flower_logged_is_the_cause() -> None:
    log = (
        "\x1b[92mINFO \x1b[0m:      Starting\n"
        "\x1b[91mERROR \x1b[0m:     The token of this process is not valid any more\n"
        "\x1b[92mINFO \x1b[0m:      bye\n"
    )
    assert error_line(log) == "The token of this process is not valid any more"


@pytest.mark.parametrize("described_at", ["pyproject.toml", "simulations/pyproject.toml"])
def test_the_assembled_app_equals_flowers_bundle(tmp_path: Path, described_at: str) -> None:
    root, folder = tmp_path / "root", tmp_path / "app"
    folder.mkdir()
    for package in ("client", "configs", "mediffusion_core/data", "server", "simulations"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text("app = None\n")
    (root / "pyproject.toml").write_text('[project]\nname = "of another project"\n')
    (root / described_at).write_text(PYPROJECT.format(server="server", client="client"))
    (root / ".venv").mkdir()
    (root / ".venv" / "module.py").touch()

    assemble_app(root, folder)

    assert sorted(collect_files(folder)) == [
        "client/__init__.py",
        "configs/__init__.py",
        "mediffusion_core/data/__init__.py",
        "pyproject.toml",
        "server/__init__.py",
    ]
    assert "app" in tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]
    assert build_fab_from_disk(folder)


def test_without_a_description_of_the_app_nothing_is_assembled(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tool\.flwr\.app"):
        assemble_app(tmp_path, tmp_path / "app")
