"""`python -m deployment.superlink`: Flower's SuperLink, restricted to its sites.

Flower serves three interfaces on one port: Fleet for the sites, Control (`flwr run`, `flwr
supernode register`) and Runtime for local processes. Only Fleet authenticates its callers. With
Control, any caller could send code to all sites or register a key. Control and Runtime therefore
answer local callers only: only users with commands at the server can start runs.
"""

import ipaddress
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
from fastapi import FastAPI
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployment.admission import SIGNER
from deployment.arguments import option_value
from deployment.flower_patches import allow_slow_starts, wrap_superlink_app
from deployment.metrics import serve_metrics
from deployment.registry import watch
from deployment.start_guard import SignedStarts
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import configure_logs, log
from mediffusion_core.messaging.site_keys import SITES

FLEET = "/v1/fleet/"
"""Path prefix of the sites' interface. Flower checks their keys with --enable-supernode-auth."""
HEALTH = "/health"
CONNECTION = "deployment"
"""The name under which `flwr run . deployment` finds this SuperLink."""


class LocalOnly:
    """ASGI middleware: refuses callers on other machines, except for the sites' interface."""

    def __init__(self, app: ASGIApp) -> None:
        """Takes the protected application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes allowed requests on; answers others with 403 and logs them."""
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        log.warning(f"refused {scope['path']} to {_caller(scope)}")
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("only from the server itself", 403)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = str(scope["path"])
        return path.startswith(FLEET) or path == HEALTH or is_local(_caller(scope))


def _caller(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


def is_local(address: str) -> bool:
    """Whether an IP address is one of the loopback interface."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def closed(
    create_app: Callable[..., FastAPI], keys: Path | None = None, signers: Path | None = None
) -> Callable[..., FastAPI]:
    """Wraps the factory of the SuperLink's web application with `LocalOnly`.

    Args:
        create_app: Flower's factory.
        keys: Folder of the sites' public keys, watched from the start on.
        signers: File of the trusted signers; with it only their runs start.
    """

    def create(*args: Any, **kwargs: Any) -> FastAPI:
        application = create_app(*args, **kwargs)
        if signers is not None:
            application.add_middleware(SignedStarts, signers=signers)
        application.add_middleware(LocalOnly)  # outermost: before all of Flower's middleware
        if keys is not None:
            watch(application.state.linkstate_factory.state(), keys)
        return application

    return create


def write_connection(home: Path, arguments: list[str]) -> None:
    """Writes the connection with which a local `flwr` finds and trusts this SuperLink.

    Args:
        home: Flower's folder, `$FLWR_HOME`.
        arguments: Arguments of the SuperLink: port and CA are read.
    """
    port = option_value(arguments, "--port") or "8000"
    authority = option_value(arguments, "--ssl-ca-certfile")
    trust = {"root-certificates": authority} if authority else {"insecure": True}
    connection = {"address": f"127.0.0.1:{port}", **trust}
    home.mkdir(parents=True, exist_ok=True)
    written = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
    (home / "config.toml").write_text(written)


def main() -> None:
    """Starts the SuperLink with the options of `flower-superlink`.

    With SuperNode authentication, $FED_MEDIFFUSION_SITES is the folder of the sites' keys. With
    $FED_MEDIFFUSION_SIGNER, the file of the trusted signers, only signed runs start.
    """
    try:
        configure_logs()
        serve_metrics(Path("runs") / "latest")
    except UserError as error:
        sys.exit(str(error))
    write_connection(Path(os.environ["FLWR_HOME"]), sys.argv[1:])
    keys, signers = (
        Path(given) if (given := os.environ.get(name)) else None for name in (SITES, SIGNER)
    )
    wrap_superlink_app(lambda create: closed(create, keys, signers))
    allow_slow_starts()
    flower_superlink()


if __name__ == "__main__":
    main()
