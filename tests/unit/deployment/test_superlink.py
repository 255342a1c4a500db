"""Access to the SuperLink: the routes that a site may call."""

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from deployment.superlink import closed, is_local, write_connection

SITE, SERVER = "172.18.0.3", "127.0.0.1"


def asked(path: str, caller: str, kind: str = "http") -> Any:
    """Status of the answer to a POST, or the code with which a web socket is closed."""
    application = closed(FastAPI)()

    async def answer() -> dict[str, bool]:
        return {"reached": True}

    for known in ("/v1/fleet/pull-messages", "/v1/control/start-run", "/health"):
        application.post(known)(answer)
    sent: list[dict[str, Any]] = []
    scope = {
        "type": kind,
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "client": (caller, 40000),
        "server": ("server", 8000),
        "scheme": "http",
        "http_version": "1.1",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))  # type: ignore[arg-type]
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/health"])
def test_a_site_reaches_the_routes_for_sites(path: str) -> None:
    assert asked(path, SITE) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/pull-task",
        "/docs",
        "/v1/fleet",
        "/v1/FLEET/x",
        "//v1/fleet/x",
        "/health/../v1/control/start-run",
    ],
)
def test_a_site_reaches_nothing_else(path: str, caplog: pytest.LogCaptureFixture) -> None:
    assert asked(path, SITE) == 403
    assert f"refused {path} to {SITE}" in caplog.text


def test_a_way_round_through_the_sites_path_leads_nowhere() -> None:
    assert asked("/v1/fleet/../control/start-run", SITE) == 404


def test_a_site_gets_no_web_socket() -> None:
    assert asked("/v1/responses", SITE, "websocket") == 1008


def test_the_server_itself_starts_runs() -> None:
    assert asked("/v1/control/start-run", SERVER) == 200


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("::1", True), ("127.9.9.9", True), ("10.0.0.1", False), ("", False)],
)
def test_local_addresses(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--insecure"], {"address": "127.0.0.1:8000", "insecure": True}),
        (
            ["--port", "9000", "--ssl-ca-certfile=/run/secrets/ca.pem"],
            {"address": "127.0.0.1:9000", "root-certificates": "/run/secrets/ca.pem"},
        ),
    ],
)
def test_flwr_is_told_where_the_superlink_is(
    tmp_path: Path, arguments: list[str], expected: dict[str, Any]
) -> None:
    write_connection(tmp_path / "home", arguments)
    written = tomllib.loads((tmp_path / "home" / "config.toml").read_text())
    assert written["superlink"] == {"default": "deployment", "deployment": expected}
