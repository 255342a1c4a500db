"""A real SuperLink and real SuperNodes on this machine's loopback, and tiny apps to run on them.

The test itself is what runs at the server: the SuperLink starts no program, so that the test takes
each run's task and sends the sites a message in its name.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.auth_plugin import OidcCliPlugin
from flwr.cli.build import build_fab_from_disk
from flwr.cli.cli_account_auth_interceptor import CliAccountAuthHttpInterceptor
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.constant import (
    AGENT_MESSAGE_CONTENT_RECORD_KEY,
    AGENT_MESSAGE_TEXT_KEY,
    TaskType,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.credential_store.file_credential_store import FileCredentialStore
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from deployment.superlink import SUPEREXEC_SECRET
from simulations.engine.processes import processes_with, read_process

Client = TypeVar("Client", bound=ProtobufClient)
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
overrides = ""
signature = ""
"""

MARK = """
import os
from pathlib import Path

(Path(os.environ["TEST_MARKS"]) / "{name}").touch()
"""

SERVER = """
from flwr.serverapp import ServerApp

app = ServerApp()
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
from flwr.agentapp import AgentApp

app = AgentApp()


@app.main()
def main(agent, context):
    call = {"name": "push_reply_message", "call_id": "1", "arguments": {"payload": "stolen"}}
    agent.grid.call(call)
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

    def node(self) -> int | None:
        """Number of the SuperNode; None for a SuperLink."""
        found = re.search(r"SuperNode ID: (\d+)", self.said())
        return int(found[1]) if found else None

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Sent:
    """The messages of one run, on their way to the sites."""

    grid: HttpGrid
    waited_for: set[str]
    names: dict[int | None, str]
    received: dict[str, str] = field(default_factory=dict)

    def answers(self) -> dict[str, str]:
        """The answer of each site, by its name; waits for all."""
        deadline = time.monotonic() + PATIENCE
        while self.waited_for:
            assert time.monotonic() < deadline, self.received
            time.sleep(0.2)
            for reply in self.grid.pull_messages(self.waited_for):
                # An AgentApp's own instruction comes the same way.
                if (answered := reply.metadata.reply_to_message_id) in self.waited_for:
                    self.waited_for.remove(answered)
                    said = reply.error.reason if reply.has_error() else "ran"
                    self.received[self.names[reply.metadata.src_node_id]] = said
        return self.received


@dataclass
class Pair:
    """A SuperLink and the SuperNodes at it."""

    folder: Path
    port: int = field(default_factory=lambda: free_port())
    services: dict[str, Service] = field(default_factory=dict)

    def start_server(self, *options: str, isolation: str = "process", **environment: str) -> None:
        """Starts the SuperLink; without options it speaks no TLS and takes any SuperNode."""
        given = [*(options or ("--insecure",)), f"--isolation={isolation}", f"--port={self.port}"]
        self._start("server", "deployment.superlink", given, environment)
        self.services["server"].wait_for("startup complete")

    def start_site(self, name: str, *more: str, **environment: str) -> None:
        """Starts a SuperNode and waits until the server knows it."""
        self.begin_site(name, *more, **environment)
        self.services[name].wait_for("SuperNode ID")

    def begin_site(self, name: str, *more: str, **environment: str) -> None:
        """Starts a SuperNode; code that it runs leaves its marks in the site's folder.

        Args:
            name: Of the site.
            more: Options of the SuperNode; without a root certificate it speaks no TLS.
            environment: Of its processes.
        """
        (self.folder / name / "marks").mkdir(parents=True)
        environment = {MARKS: str(self.folder / name / "marks"), **environment}
        options = [*more, f"--superlink={self.address}", f"--port={free_port()}"]
        if not any(option.startswith("--root-certificates") for option in more):
            options.append("--insecure")
        self._start(name, "deployment.supernode", options, environment)

    def marks(self, site: str) -> set[str]:
        return {mark.name for mark in (self.folder / site / "marks").iterdir()}

    def programs(self, name: str) -> set[str]:
        """Names of the programs that a SuperNode or the server started and that still run."""
        return set(self.processes(name).values())

    def processes(self, name: str) -> dict[int, str]:
        """The programs of a SuperNode or the server that still run, by process id."""
        own = processes_with("FLWR_HOME", str(self.folder / name / "flower"))
        commands = {pid: read_process(pid, "cmdline").decode().split("\0") for pid in own}
        return {
            pid: command[2] if command[1] == "-m" else Path(command[1]).name
            for pid, command in commands.items()
            if len(command) > 2
        }

    def start_run(self, bundle: bytes, **config: str) -> "Sent":
        """Starts a run, and sends each site a message in its name."""
        request = StartRunRequest(
            fab=Fab(content=bundle),
            override_config=user_config_to_proto(config),
            user_prompt="go",  # which Flower demands for an AgentApp
        )
        self._client(ControlHttpClient, self.control_token()).StartRun(request)
        kinds = AcquireTaskRequest(supported_task_types=list(TaskType))
        token = self._client(RuntimeHttpClient, self._superexec_proof()).AcquireTask(kinds).token
        grid = HttpGrid(self.address, insecure=True, token=token)
        task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        grid.set_run(run_from_proto(task.run))
        # A process of Flower's has one task; messages take their run from it.
        TaskIdentity.run_id, TaskIdentity.node_id = task.run.run_id, SUPERLINK_NODE_ID
        TaskIdentity.task_id = task.task_id
        names = {service.node(): name for name, service in self.services.items()}
        text = ConfigRecord({AGENT_MESSAGE_TEXT_KEY: "go"})
        content = RecordDict({AGENT_MESSAGE_CONTENT_RECORD_KEY: text})
        nodes = list(grid.get_node_ids())
        assert len(nodes) == len(self.services) - 1
        messages = [Message(content, node, "query") for node in nodes]
        return Sent(grid, set(grid.push_messages(messages)), names)

    def end(self) -> None:
        for service in reversed(self.services.values()):
            service.end()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def control_token(self) -> ProtobufClientInterceptor:
        """Adds the token of the server's own `flwr`."""
        plugin = OidcCliPlugin(self.address)
        plugin.store = FileCredentialStore(self.flower_home / "credentials.yaml")
        plugin.load_tokens()
        return CliAccountAuthHttpInterceptor(plugin, lambda _: pytest.fail("not refreshed"))

    @property
    def flower_home(self) -> Path:
        return self.folder / "server" / "flower"

    def _superexec_proof(self) -> ProtobufClientInterceptor:
        return SuperExecAuthHttpInterceptor(
            master_secret=(self.flower_home / SUPEREXEC_SECRET).read_bytes(),
            protected_methods={"/flwr.proto.Runtime/AcquireTask"},
        )

    def _client(self, kind: type[Client], proof: ProtobufClientInterceptor) -> Client:
        versions = RuntimeVersionHttpInterceptor(component_name="flwr")
        return kind.from_server_address(self.address, True, None, interceptors=[versions, proof])

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
            env=flower_environment(folder) | environment,
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.services[name] = Service(process, log)


def flower_environment(folder: Path) -> dict[str, str]:
    """The environment of Flower's programs whose files are in a folder."""
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
