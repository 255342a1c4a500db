"""Preflight at a site names each missing part and prints no secret."""

import ssl
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import time

import pytest
from typer.testing import CliRunner

from deployment.accepted_versions import PLACE
from deployment.admission import SIGNER, TRUST, UNSIGNED
from deployment.federation_file import FederationFile
from deployment.provision import Kits
from simulations.cli.main import app


class Superlink(HTTPServer):
    """A server that answers as the SuperLink's health does, by a clock that can be set."""

    ahead = 0.0


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        assert isinstance(self.server, Superlink)
        return formatdate(time() + self.server.ahead, usegmt=True)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    for name in ("chest", "foreign"):
        server = {"host": "127.0.0.1", "port": 8000}
        federation = FederationFile.model_validate(
            {"name": name, "server": server, "sites": ["uni"], "make_site_keys": True}
        )
        assert list(Kits(federation, tmp_path / name).make())
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    kit = tmp_path / "chest" / "kits" / "uni"
    for source, target in (("ca.pem", "ca"), ("node.key", "node-key"), ("signer.pem", "signer")):
        (secrets / target).write_bytes((kit / source).read_bytes())
    (secrets / "node-key").chmod(0o400)
    return tmp_path


@pytest.fixture
def superlink(kits: Path, request: pytest.FixtureRequest) -> Iterator[Superlink]:
    server = Superlink(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = kits / getattr(request, "param", "chest") / "server"
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def preflight(kits: Path, port: int, *options: str) -> tuple[int, str]:
    arguments = ["--server", f"127.0.0.1:{port}", "--secrets", str(kits / "secrets")]
    arguments += ["--folder", str(kits), *options]
    result = CliRunner().invoke(app, ["preflight", *arguments])
    return result.exit_code, result.output


def line(output: str, check: str) -> str:
    return next(line for line in output.splitlines() if line[9:].startswith(check))


def test_the_way_to_the_server_is_looked_at_and_no_key_is_printed(
    kits: Path, superlink: Superlink
) -> None:
    _, output = preflight(kits, superlink.server_port, "--data", str(kits / "none"))
    for check in ("server ", "certificate", "clock", "site's key", "coordinator's key", "disk"):
        assert line(output, check).startswith("ok"), output
    assert line(output, "images").startswith("error")
    assert output.splitlines()[-1] == "not ready"
    secret = (kits / "secrets" / "node-key").read_text().splitlines()[1]
    assert secret not in output and "PRIVATE" not in output


@pytest.mark.parametrize("superlink", ["foreign"], indirect=True)
def test_a_foreign_server_is_named(kits: Path, superlink: Superlink) -> None:
    code, output = preflight(kits, superlink.server_port)
    assert (code, line(output, "certificate")[:5]) == (1, "error")
    assert not any(line[9:].startswith("clock") for line in output.splitlines())


@pytest.mark.parametrize(("ahead", "grade"), [(-30, "error"), (120, "ok"), (400, "error")])
def test_a_clock_that_flower_would_refuse_is_named(
    kits: Path, superlink: Superlink, ahead: float, grade: str
) -> None:
    superlink.ahead = ahead
    _, output = preflight(kits, superlink.server_port)
    assert line(output, "clock").startswith(grade), output


def test_a_site_without_a_signer_must_say_that_it_trusts_its_server(
    kits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(*options: str) -> str:
        return line(preflight(kits, 1, *options)[1], "coordinator's key")

    monkeypatch.delenv(SIGNER, raising=False)
    monkeypatch.delenv(UNSIGNED, raising=False)
    assert "every run is refused" in key("--insecure")
    monkeypatch.setenv(UNSIGNED, TRUST)
    assert key("--insecure").startswith("warning")
    assert f"{UNSIGNED} is set beside" in key()
    monkeypatch.setenv(UNSIGNED, "yes")
    assert f"the only value is {TRUST}" in key("--insecure")


def test_a_key_that_is_no_coordinators_is_named(kits: Path) -> None:
    (kits / "secrets" / "signer").write_text("no key")
    assert "no file of trusted signers" in line(preflight(kits, 1)[1], "coordinator's key")
    (kits / "secrets" / "signer").unlink()
    assert "No such file" in line(preflight(kits, 1)[1], "coordinator's key")


def test_a_damaged_record_of_versions_is_named(kits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLACE, str(kits / "versions.json"))
    assert "none yet" in line(preflight(kits, 1)[1], "accepted versions")
    (kits / "versions.json").write_text("{")
    assert "is damaged" in line(preflight(kits, 1)[1], "accepted versions")


def test_a_server_that_is_not_there_is_named(kits: Path, superlink: Superlink) -> None:
    port = superlink.server_port
    superlink.shutdown()
    superlink.server_close()
    code, output = preflight(kits, port)
    assert code == 1
    assert "Connection refused" in line(output, "server ")


def test_a_key_that_others_may_read_or_that_is_none_is_an_error(kits: Path) -> None:
    key = kits / "secrets" / "node-key"
    key.chmod(0o644)
    assert "can be read by others" in line(preflight(kits, 1)[1], "site's key")
    key.write_text("no key")
    assert "is no private key" in line(preflight(kits, 1)[1], "site's key")


def test_a_server_without_port_is_a_mistake() -> None:
    result = CliRunner().invoke(app, ["preflight", "--server", "example.org"])
    assert "not of the form HOST:PORT" in str(result.exception)
