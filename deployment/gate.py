"""Admission of requests to the SuperLink: who may send what, and how much of it.

Flower serves three interfaces on one port: Fleet for the sites, Control (`flwr run`, `flwr
supernode register`) and Runtime for the processes of a run. It authenticates the callers of Fleet
and Runtime, but reads and parses the whole body first. It answers any caller of Control.

The gate reads the headers. It admits a request with one of three proofs: a signature by a
registered key (Fleet), the control token (Control), or the token of a task in progress (Runtime).
The body is read after that, up to a limit for its kind and in limited time. Flower then checks the
proof against the content. The address of a caller is no proof: behind a proxy all have the same.
"""

import asyncio
import binascii
import secrets
from base64 import b64decode
from typing import Protocol

from flwr.common.constant import (
    FAB_MAX_SIZE,
    FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE,
    TIMESTAMP_HEADER,
)
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TASK_TOKEN_HEADER,
)
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment.strangers import Strangers
from mediffusion_core.common.logs import log

FLEET, CONTROL, RUNTIME = "/v1/fleet/", "/v1/control/", "/v1/runtime/"
HEALTH = "/health"
OPEN = frozenset(
    {HEALTH, f"{FLEET}register-node", f"{FLEET}activate-node", f"{RUNTIME}acquire-task"}
)
"""Paths without a proof in the headers. Flower checks the proof in their small bodies."""

KIB, MIB = 2**10, 2**20
OPEN_BODY = 16 * KIB
"""Largest body for `OPEN`: a public key, or the kinds of tasks."""
ORDINARY_BODY = 4 * MIB
LARGE_BODIES = {
    f"{FLEET}push-object": FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + MIB,
    f"{RUNTIME}push-object": FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + MIB,
    f"{CONTROL}start-run": FAB_MAX_SIZE + MIB,
}
"""Largest bodies of the kinds that carry arrays or an app bundle. Flower sends an array of any size
in chunks."""
BODY_SECONDS = 120.0
"""Time for one body: a chunk of 5 MiB at 350 kbit/s."""


class Keys(Protocol):
    """The part of Flower's `LinkState` that knows callers."""

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        """The node of a registered key."""

    def get_task_by_token(self, token: str) -> object | None:
        """The task in progress with this token."""


class _RefusedError(Exception):
    """The refusal of a request."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _GoneError(Exception):
    """The caller has left."""


class Gate:
    """ASGI middleware: passes admitted requests on, with their bodies in one piece."""

    def __init__(self, app: ASGIApp, keys: Keys, token: str, strangers: Strangers) -> None:
        """Takes the protected application, the known callers, and the connections.

        Args:
            app: Flower's application.
            keys: Registered keys and tasks in progress.
            token: Of the callers of Control.
            strangers: Told of each caller with a proof.
        """
        self._app = app
        self._keys = keys
        self._authorization = f"Bearer {token}".encode()
        self._strangers = strangers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes admitted requests on; answers others with an error and logs them."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = str(scope["path"])
        try:
            await self._admit(path, Headers(scope=scope))
            if path not in OPEN:
                self._strangers.recognise(scope["client"])
            body = await _body(scope, receive, largest_body(path))
        except _RefusedError as refused:
            # As it was sent, since a decoded path may hold line breaks.
            sent = scope["raw_path"].decode("ascii", "backslashreplace")
            log.warning(f"refused {sent} to {_address(scope)}: {refused}")
            closing = {"connection": "close"}  # else the server would read the body's rest
            await PlainTextResponse(str(refused), refused.status, closing)(scope, receive, send)
        except _GoneError:
            return
        else:
            await self._app(scope, with_body(body, receive), self._noticing(path, scope, send))

    async def _admit(self, path: str, headers: Headers) -> None:
        if path in OPEN:
            return
        if path.startswith(FLEET):
            proven = await run_in_threadpool(self._is_signed_by_site, headers)
        elif path.startswith(CONTROL):
            given = headers.get("authorization", "").encode("latin-1")
            proven = secrets.compare_digest(given, self._authorization)
        elif path.startswith(RUNTIME):
            given_token = headers.get(TASK_TOKEN_HEADER, "")
            proven = await run_in_threadpool(self._is_in_progress, given_token)
        else:
            raise _RefusedError(403, "not served")
        if not proven:
            raise _RefusedError(401, "no proof of an admitted caller")

    def _is_signed_by_site(self, headers: Headers) -> bool:
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            signed = headers[TIMESTAMP_HEADER].encode("ascii")
        except (KeyError, UnicodeError, binascii.Error):
            return False
        if self._keys.get_node_id_by_public_key(key) is None:
            return False
        return verify_signature(bytes_to_public_key(key), signed, signature)

    def _is_in_progress(self, token: str) -> bool:
        return bool(token) and self._keys.get_task_by_token(token) is not None

    def _noticing(self, path: str, scope: Scope, send: Send) -> Send:
        """Recognises the caller of an open path once Flower has accepted its proof."""
        if path not in OPEN or path == HEALTH:
            return send

        async def noticing(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._strangers.recognise(scope["client"])
            await send(message)

        return noticing


def largest_body(path: str) -> int:
    """The largest body in bytes that a request to a path may have."""
    return OPEN_BODY if path in OPEN else LARGE_BODIES.get(path, ORDINARY_BODY)


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The whole body of a request.

    Raises:
        _RefusedError: if it is longer than `most` bytes, by its declared length or as it arrives,
            or takes longer than `BODY_SECONDS`.
        _GoneError: if the caller leaves before its end.
    """
    too_long = _RefusedError(413, f"a body of more than {most} bytes")
    if int(Headers(scope=scope).get("content-length", 0)) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise _RefusedError(408, f"a body that takes more than {BODY_SECONDS:g} s") from None


def with_body(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read before, and then what else arrives."""
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body


def _address(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""
