"""The SuperLink starts only runs that a coordinator or a researcher has signed.

Control, the interface of `flwr`, answers callers of the server's own machine alone, and has no
login: each of them could start a run. Sites refuse a run that is not signed; with this check the
server refuses it first, and its audit log says who started which run. Reading (`flwr list`,
`flwr log`) takes no key, nor does `flwr stop`.
"""

from pathlib import Path

from flwr.common.serde import user_config_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from google.protobuf.message import DecodeError
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment.signed_run import SignedRun
from deployment.signers import read_signers
from deployment.signing import BundleRefusedError, run_hash, settings_digest
from mediffusion_core.common.audit_log import AuditLog
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import log

START = "/v1/control/start-run"
AUTOMATION = "/v1/control/start-automation"
"""Starts runs later, without a signature of each."""


class SignedStarts:
    """ASGI middleware: refuses to start a run without the signature of a trusted signer."""

    def __init__(self, app: ASGIApp, signers: Path) -> None:
        """Takes the protected application, and the file of the trusted signers."""
        self._app = app
        self._signers = signers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes signed starts and all other requests on; answers others with 403."""
        if scope["type"] != "http" or scope["path"] not in (START, AUTOMATION):
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        try:
            if scope["path"] == AUTOMATION:
                raise BundleRefusedError("automations start runs that are not signed")
            self._check(body)
        except (BundleRefusedError, UserError, OSError) as error:
            reason = str(error)
            log.warning(f"refused to start a run: {reason}")
            await PlainTextResponse(reason, 403)(scope, receive, send)
            return
        await self._app(scope, _again(body, receive), send)

    def _check(self, body: bytes) -> None:
        """Writes who starts which run into the audit log.

        Raises:
            BundleRefusedError: if no trusted signer has signed the run.
            UserError: if the signers can't be read, or the log can't be written.
            OSError: if the signers can't be read.
        """
        try:
            request = StartRunRequest.FromString(body)
        except DecodeError:
            raise BundleRefusedError("the request can't be read") from None
        overrides = user_config_from_proto(request.override_config)
        signed = SignedRun.verified(request.fab.content, overrides, read_signers(self._signers))
        audit = AuditLog.of_environment()
        if audit is not None:
            audit.append(
                "start",
                at="server",
                signer=str(signed.signer),
                key=signed.signer.digest,
                bundle=signed.statement.bundle,
                detail=run_hash(signed.statement.bundle, settings_digest(signed.settings)),
            )


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A receiver that has the body once more."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received
