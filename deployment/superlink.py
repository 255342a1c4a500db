"""`python -m deployment.superlink`: Flower's SuperLink, restricted to callers with a proof.

`deployment.gate` admits requests: those of sites with a registered key, those of `flwr` with the
control token, and those of a run's processes. The token is written to Flower's folder at each
start, for its owner alone. So only users with commands at the server can start runs.
"""

import os
import secrets
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
from fastapi import FastAPI
from flwr.cli.constant import (
    ACCESS_TOKEN_STORE_KEY,
    AUTHN_TYPE_STORE_KEY,
    REFRESH_TOKEN_STORE_KEY,
)
from flwr.common.constant import AuthnType
from flwr.supercore.credential_store.file_credential_store import FileCredentialStore
from flwr.superlink.cli.flower_superlink import flower_superlink

from deployment.admission import SIGNER
from deployment.arguments import option_value
from deployment.certificates import write_secret
from deployment.flower_patches import (
    allow_slow_starts,
    give_superexec_secret,
    serve_superlink,
    wrap_superlink_app,
)
from deployment.gate import Gate
from deployment.metrics import serve_metrics
from deployment.registry import watch
from deployment.start_guard import SignedStarts
from deployment.strangers import Strangers, serve
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import configure_logs
from mediffusion_core.messaging.site_keys import SITES

CONNECTION = "deployment"
"""The name under which `flwr run . deployment` finds this SuperLink."""
SUPEREXEC_SECRET = "superexec-secret"
"""File in Flower's folder, for the process that starts ServerApps."""


def gated(
    create_app: Callable[..., FastAPI],
    token: str,
    superexec_secret: bytes,
    strangers: Strangers,
    keys: Path | None = None,
    signers: Path | None = None,
) -> Callable[..., FastAPI]:
    """Wraps the factory of the SuperLink's web application with the gate.

    Args:
        create_app: Flower's factory.
        token: Of the callers of Control.
        superexec_secret: Of the process that starts ServerApps.
        strangers: The server's connections.
        keys: Folder of the sites' public keys, watched from the start on.
        signers: File of the trusted signers; with it only their runs start.
    """

    def create(*args: Any, **kwargs: Any) -> FastAPI:
        application = create_app(*args, **kwargs)
        given = application.state.superexec_auth_secret  # by an option, for a SuperExec elsewhere
        application.state.superexec_auth_secret = given or superexec_secret
        state = application.state.linkstate_factory.state()
        if signers is not None:
            application.add_middleware(SignedStarts, signers=signers)
        # Outermost: before all other middleware.
        application.add_middleware(Gate, keys=state, token=token, strangers=strangers)
        if keys is not None:
            watch(state, keys)
        return application

    return create


def write_connection(home: Path, arguments: list[str], token: str) -> None:
    """Writes the connection with which a local `flwr` finds and trusts this SuperLink.

    Args:
        home: Flower's folder, `$FLWR_HOME`.
        arguments: Arguments of the SuperLink: port and CA are read.
        token: Of the callers of Control. Flower's command line sends a stored access token.
    """
    address = f"127.0.0.1:{option_value(arguments, '--port') or '8000'}"
    authority = option_value(arguments, "--ssl-ca-certfile")
    trust = {"root-certificates": authority} if authority else {"insecure": True}
    home.mkdir(parents=True, exist_ok=True)
    connection = {"default": CONNECTION, CONNECTION: {"address": address, **trust}}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": connection}))
    store = FileCredentialStore(home / "credentials.yaml")
    store.set(AUTHN_TYPE_STORE_KEY % address, AuthnType.OIDC.encode())
    store.set(ACCESS_TOKEN_STORE_KEY % address, token.encode())
    store.set(REFRESH_TOKEN_STORE_KEY % address, b"")


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
    home = Path(os.environ["FLWR_HOME"])
    token, superexec_secret = secrets.token_urlsafe(32), secrets.token_bytes(32)
    write_connection(home, sys.argv[1:], token)
    write_secret(home / SUPEREXEC_SECRET, superexec_secret)
    keys, signers = (
        Path(given) if (given := os.environ.get(name)) else None for name in (SITES, SIGNER)
    )
    strangers = Strangers()
    wrap_superlink_app(
        lambda create: gated(create, token, superexec_secret, strangers, keys, signers)
    )
    serve_superlink(partial(serve, strangers))
    give_superexec_secret(home / SUPEREXEC_SECRET)
    allow_slow_starts()
    flower_superlink()


if __name__ == "__main__":
    main()
