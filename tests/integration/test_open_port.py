"""What anyone can do to the SuperLink's open port: its memory stays, and the federation goes on.

The server has TLS and registered keys, as `provision` makes them. Each attack is measured: the
server's resident memory before it and at its highest, which `pytest -rP` prints.
"""

import contextlib
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flower_pair import Pair, Service
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from deployment.federation_file import FederationFile
from deployment.provision import Kits
from mediffusion_core.messaging.site_keys import SITES

MB = 1e6
ALLOWED = 100 * MB
GIGABYTE = 10**9
PART = bytes(2**20)
PUSH = "/v1/fleet/push-object"
ACTIVATE = "/v1/fleet/activate-node"


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    folder = tmp_path_factory.mktemp("kits")
    (folder / "federation.yaml").write_text(
        "name: open\nserver: {host: localhost}\nsites: [site]\nmake_site_keys: true\n"
    )
    made = Kits(FederationFile.read(folder / "federation.yaml"), folder / "open")
    list(made.make())
    return made


@pytest.fixture(scope="module")
def server(kits: Kits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    started = Pair(tmp_path_factory.mktemp("open-port"))
    own = kits.folder / "server"
    try:
        started.start_server(
            f"--ssl-ca-certfile={own / 'ca.pem'}",
            f"--ssl-certfile={own / 'server.pem'}",
            f"--ssl-keyfile={own / 'server.key'}",
            "--enable-supernode-auth",
            isolation="subprocess",
            **{SITES: str(own / "sites")},
        )
        started.services["server"].wait_for("sites: registered site")
        yield started
    finally:
        started.end()


class Site:
    """What a registered SuperNode asks, over one connection that it keeps."""

    def __init__(self, server: Pair, kits: Kits) -> None:
        self._server = server
        self._kit = kits.folder / "kits" / "site"
        self._client = self._connection()
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._private.public_key()), heartbeat_interval=30.0
        )
        self._node = Node(node_id=self._client.ActivateNode(request).node_id)

    def works(self) -> bool:
        """Whether it is answered over the connection that it has."""
        request = PullMessagesRequest(node=self._node)
        return not self._client.PullMessages(request).messages_list

    def comes_back(self) -> bool:
        """Whether it is answered over a new connection."""
        self._client.close()
        self._client = self._connection()
        return self.works()

    def _connection(self) -> FleetHttpClient:
        proof = NodeAuthHttpInterceptor(self._private, self._private.public_key())
        return FleetHttpClient.from_server_address(
            self._server.address,
            False,
            (self._kit / "ca.pem").read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperNode"), proof],
        )

    @property
    def _private(self) -> ec.EllipticCurvePrivateKey:
        key = load_ssh_private_key((self._kit / "node.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key


@pytest.fixture(scope="module")
def site(server: Pair, kits: Kits) -> Site:
    """A site that is there before the attacks."""
    return Site(server, kits)


class Memory:
    """The resident memory of a process, by Linux' own account."""

    def __init__(self, service: Service) -> None:
        self._folder = Path(f"/proc/{service.process.pid}")
        (self._folder / "clear_refs").write_text("5")  # the highest value begins anew
        self.before = self._bytes("VmRSS")

    def grown(self, attack: str) -> float:
        """By how many bytes it grew at its highest, which is printed."""
        most, after = self._bytes("VmHWM"), self._bytes("VmRSS")
        print(f"{attack}: {self.before / MB:.0f} MB before, {most / MB:.0f} at most, "
              f"{after / MB:.0f} after")  # fmt: skip
        return most - self.before

    def _bytes(self, name: str) -> float:
        lines = (self._folder / "status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def connected(server: Pair, kits: Kits) -> ssl.SSLSocket:
    """A TLS connection of a caller without a key."""
    context = ssl.create_default_context(cafile=kits.folder / "kits/site/ca.pem")
    plain = socket.create_connection(("127.0.0.1", server.port), 30)
    return context.wrap_socket(plain, server_hostname="localhost")


def head(path: str, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", *headers)
    return "\r\n".join([*lines, "", ""]).encode()


def stream(connection: ssl.SSLSocket, parts: Iterator[bytes]) -> tuple[int, bytes]:
    """Sends until the server closes; how many bytes were sent, and the answer's first line."""
    sent = 0
    with contextlib.suppress(OSError):
        for part in parts:
            connection.sendall(part)
            sent += len(part)
    answer = b""
    with contextlib.suppress(OSError):
        answer = connection.recv(4096)
    connection.close()
    return sent, answer.partition(b"\r\n")[0]


def declared() -> Iterator[bytes]:
    yield head(PUSH, f"Content-Length: {GIGABYTE}", "Content-Type: application/protobuf")
    yield from (PART for _ in range(GIGABYTE // len(PART)))


def chunked(path: str) -> Iterator[bytes]:
    yield head(path, "Transfer-Encoding: chunked", "Content-Type: application/protobuf")
    yield from (b"%x\r\n%s\r\n" % (len(PART), PART) for _ in range(GIGABYTE // len(PART)))


def headers() -> Iterator[bytes]:
    yield head(PUSH).removesuffix(b"\r\n")
    yield from (b"x: %s\r\n" % PART for _ in range(GIGABYTE // len(PART)))


@pytest.mark.parametrize(
    ("attack", "parts"),
    [
        ("a declared body of 1 GB", declared()),
        ("chunks of 1 GB", chunked(PUSH)),
        ("chunks of 1 GB to a path without a proof", chunked(ACTIVATE)),
        ("headers of 1 GB", headers()),
    ],
)
def test_a_gigabyte_without_a_key_is_cut_off(
    server: Pair, kits: Kits, site: Site, attack: str, parts: Iterator[bytes]
) -> None:
    memory = Memory(server.services["server"])
    sent, answer = stream(connected(server, kits), parts)
    assert sent < GIGABYTE / 10
    assert answer in (b"", *(b"HTTP/1.1 " + status for status in REFUSALS))
    assert memory.grown(attack) < ALLOWED
    assert site.works() and site.comes_back()


REFUSALS = (
    b"400 Bad Request",
    b"401 Unauthorized",
    b"413 Content Too Large",
    b"413 Request Entity Too Large",
)


def test_slow_bodies_take_no_place(server: Pair, kits: Kits, site: Site) -> None:
    memory = Memory(server.services["server"])
    slow = [connected(server, kits) for _ in range(400)]
    for number, connection in enumerate(slow):
        with contextlib.suppress(OSError):
            path = ACTIVATE if number % 2 else PUSH
            connection.sendall(head(path, "Content-Length: 10000") + b"a")
    assert site.works() and site.comes_back()
    assert memory.grown("400 slow bodies") < ALLOWED
    for connection in slow:
        connection.close()


def test_ten_thousand_connections_keep_no_site_out(server: Pair, kits: Kits, site: Site) -> None:
    memory = Memory(server.services["server"])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = min(10_000, most - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened = []
    for number in range(count):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", server.port))
        opened.append(connection)
        if number % 2000 == 0:
            assert site.works()
    assert site.works()
    begun = time.monotonic()
    assert site.comes_back()
    print(f"a site that comes back waits for {time.monotonic() - begun:.1f} s")
    assert memory.grown(f"{count} connections") < ALLOWED
    for connection in opened:
        connection.close()
    assert site.comes_back()


def test_only_the_servers_own_flwr_controls_it(server: Pair, kits: Kits, tmp_path: Path) -> None:
    """As Flower's own command line, which finds its token in the server's folder of Flower."""
    environment = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    command = [str(Path(sys.executable).parent / "flwr"), "list", "deployment", "--format=json"]
    given = {"FLWR_HOME": str(server.flower_home), **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
    assert '"success": true' in done.stdout, done
    client = ControlHttpClient.from_server_address(
        server.address, False, (kits.folder / "kits/site/ca.pem").read_bytes(), interceptors=[]
    )
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        client.ListRuns(ListRunsRequest())


def test_the_process_that_starts_serverapps_has_its_secret(server: Pair) -> None:
    """Flower logs its frequent requests only where they fail."""
    said = server.services["server"].said()
    assert "Starting Flower SuperExec" in said
    assert "/v1/runtime/acquire-task" not in said
