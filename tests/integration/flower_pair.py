"""A real SuperLink and real SuperNodes on this machine's loopback, and tiny apps to run on them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

ROOT = Path(__file__).parents[2]
MARKS = "TEST_MARKS"
"""The folder in which code that a SuperNode runs leaves a file, in its environment."""
PATIENCE = 180.0
"""Seconds for what takes five on a machine that is not busy."""

PYPROJECT = """
[project]
name = "{name}"
version = "1.0"
description = "An app that leaves a mark where it runs."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
{components}

[tool.flwr.app.config]
answers = ""
nodes = 0
overrides = ""
signature = ""
"""

MARK = """
import os
from pathlib import Path

if folder := os.environ.get("TEST_MARKS"):
    (Path(folder) / "{name}").touch()
"""

SERVER = """
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.1)
    content = RecordDict({"order": ConfigRecord({"x": 1})})
    messages = [Message(content, node, "query") for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=120))
    said = {
        str(reply.metadata.src_node_id): reply.error.reason if reply.has_error() else "ran"
        for reply in replies
    }
    Path(context.run_config["answers"]).write_text(json.dumps(said))
"""

CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
{work}
    return Message(RecordDict({{"order": ConfigRecord({{"x": 2}})}}), reply_to=message)
"""

AGENT = """
import json
import os
import time
from pathlib import Path

from flwr.agentapp import AgentApp

app = AgentApp()


@app.main()
def main(agent, context):
    if "TEST_MARKS" in os.environ:
        call = {"name": "push_reply_message", "call_id": "1", "arguments": {"payload": "stolen"}}
        agent.grid.call(call)
        return
    nodes = []
    while len(nodes) < context.run_config["nodes"]:
        call = {"name": "get_nodes", "call_id": "2", "arguments": {"sample_size": None}}
        nodes = json.loads(agent.grid.call(call)["output"])["nodes"]
        time.sleep(0.1)
    orders = [
        {"dst_node_id": node["id"], "payload": "go", "reply_to_message_id": None} for node in nodes
    ]
    call = {"name": "push_messages", "call_id": "3", "arguments": {"messages": orders}}
    results = json.loads(agent.grid.call(call)["output"])["results"]
    sent = [result["message_id"] for result in results]
    wanted = {"message_ids": sent, "timeout": 120}
    call = {"name": "pull_messages", "call_id": "4", "arguments": wanted}
    replies = json.loads(agent.grid.call(call)["output"])["messages"]
    said = {reply["src_node_id"]: reply["payload"] or reply["error"] for reply in replies}
    Path(context.run_config["answers"]).write_text(json.dumps(said))
"""

PAIR = 'serverapp = "tiny.server:app"\nclientapp = "tiny.client:app"'


def client_bundle(folder: Path, name: str, work: str = "pass") -> bytes:
    """A bundle whose ClientApp leaves a mark of the given name where a site loads it.

    Its ServerApp leaves NAME-serverapp where a site loads that.

    Args:
        folder: An empty one.
        name: Of the app, and of the mark.
        work: Python lines that the ClientApp runs for a message.
    """
    lines = "\n".join(f"    {line}" for line in work.splitlines())
    sources = {
        "server": MARK.format(name=f"{name}-serverapp") + SERVER,
        "client": MARK.format(name=name) + CLIENT.format(work=lines),
    }
    return _bundle(folder, name, PAIR, sources)


def agent_bundle(folder: Path, name: str) -> bytes:
    """A bundle with nothing but an AgentApp, which leaves a mark at a site."""
    sources = {"agent": MARK.format(name=name) + AGENT}
    return _bundle(folder, name, 'agentapp = "tiny.agent:app"', sources)


def _bundle(folder: Path, name: str, components: str, sources: Mapping[str, str]) -> bytes:
    package = folder / name / "tiny"
    package.mkdir(parents=True)
    text = PYPROJECT.format(name=name, components=components)
    (folder / name / "pyproject.toml").write_text(text)
    (package / "__init__.py").touch()
    for module, source in sources.items():
        (package / f"{module}.py").write_text(source)
    return build_fab_from_disk(folder / name)


@dataclass
class Service:
    """A process, and the file of all that it and its children print."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Pair:
    """A SuperLink and the SuperNodes at it."""

    folder: Path
    port: int = field(default_factory=lambda: free_port())
    services: dict[str, Service] = field(default_factory=dict)

    def start_server(self) -> None:
        options = ["--insecure", "--host=127.0.0.1", f"--port={self.port}"]
        self._start("server", "deployment.superlink", options, {})
        self.services["server"].wait_for("Uvicorn running")

    def start_site(self, name: str, **environment: str) -> None:
        """Starts a SuperNode; code that it runs leaves its marks in the site's folder."""
        (self.folder / name / "marks").mkdir(parents=True)
        environment = {MARKS: str(self.folder / name / "marks"), **environment}
        superlink = f"--superlink=127.0.0.1:{self.port}"
        options = ["--insecure", superlink, f"--port={free_port()}"]
        self._start(name, "deployment.supernode", options, environment)
        self.services[name].wait_for("SuperNode ID")

    def marks(self, site: str) -> set[str]:
        return {mark.name for mark in (self.folder / site / "marks").iterdir()}

    def start_run(self, bundle: bytes, name: str, **config: str) -> int:
        """Starts a run at all sites under a name of its own, and returns Flower's number of it."""
        request = StartRunRequest(
            fab=Fab(content=bundle),
            override_config=user_config_to_proto(self.run_config(name) | config),
            user_prompt="go",  # which Flower demands for an AgentApp
        )
        return int(self._control().StartRun(request).run_id)

    def answers(self, name: str, run: int) -> dict[str, str]:
        """What each site answered in a run, by the site's name; waits for the end of the run."""
        control, request = self._control(), ListRunsRequest(run_id=run)
        deadline = time.monotonic() + PATIENCE
        while control.ListRuns(request).run_dict[run].status.status != "finished":
            assert time.monotonic() < deadline, self.services["server"].said()
            time.sleep(0.5)
        answers = self.folder / f"{name}.json"
        assert answers.is_file(), self.services["server"].said()
        said = json.loads(answers.read_text())
        return {self._site(node): answer for node, answer in said.items()}

    def run_config(self, name: str) -> dict[str, str | int]:
        """What a run of that name is given beside its signature."""
        sites = len(self.services) - 1
        return {"answers": str(self.folder / f"{name}.json"), "nodes": sites}

    def end(self) -> None:
        for service in reversed(self.services.values()):
            service.end()

    def _control(self) -> ControlHttpClient:
        return ControlHttpClient.from_server_address(
            f"127.0.0.1:{self.port}",
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr")],
        )

    def _site(self, node: str) -> str:
        return next(name for name, one in self.services.items() if f"ID: {node}" in one.said())

    def _start(
        self, name: str, module: str, options: list[str], environment: Mapping[str, str]
    ) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        # As in the site's image, ours stands in the place of Flower's.
        program = (ROOT / "docker" / "flwr-clientapp").read_text().partition("\n")[2]
        (folder / "flwr-clientapp").write_text(f"#!{sys.executable}\n{program}")
        (folder / "flwr-clientapp").chmod(0o755)
        log = folder / "log.txt"
        process = subprocess.Popen(
            [sys.executable, "-m", module, *options],
            cwd=folder,
            env=_environment(folder) | environment,
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.services[name] = Service(process, log)


def _environment(folder: Path) -> dict[str, str]:
    programs = os.pathsep.join((str(folder), str(Path(sys.executable).parent)))
    given = {key: value for key, value in os.environ.items() if not key.startswith("FED_")}
    return given | {
        "PATH": os.pathsep.join((programs, given.get("PATH", os.defpath))),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(folder / "flower"),
        "XDG_DATA_HOME": str(folder / "data"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }


def free_port() -> int:
    """A port of the loopback interface on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
