"""Who may send what to the SuperLink, and how much of it."""

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi import FastAPI, Request
from flwr.supercore.primitives.asymmetric import (
    generate_key_pairs,
    public_key_to_bytes,
    sign_message,
)

from deployment import gate
from deployment.gate import CONTROL, FLEET, MIB, RUNTIME, Gate, largest_body
from deployment.strangers import Strangers

TOKEN, TASK = "the token of a local flwr", "the token of a task"
CALLER = ("127.0.0.1", 40000)
REGISTERED, PUBLIC = generate_key_pairs()
PULL, PUSH = f"{FLEET}pull-messages", f"{FLEET}push-object"
KNOWN = (
    *(PULL, PUSH, f"{FLEET}activate-node", f"{CONTROL}start-run", f"{CONTROL}list-runs"),
    *(f"{RUNTIME}acquire-task", f"{RUNTIME}push-object", "/health"),
)


class Keys:
    """One registered key and one task in progress."""

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        return 1 if public_key == public_key_to_bytes(PUBLIC) else None

    def get_task_by_token(self, token: str) -> object | None:
        return object() if token == TASK else None


def signed(
    private: Any = REGISTERED, public: Any = PUBLIC, timestamp: str = "now"
) -> dict[str, str]:
    """The headers of a SuperNode."""
    signature = sign_message(private, b"now")
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(public)).decode(),
        "flwr-signature": b64encode(signature).decode(),
        "flwr-timestamp": timestamp,
    }


CONTROLLING = {"authorization": f"Bearer {TOKEN}"}
IN_PROGRESS = {"flwr-task-token": TASK}


class Caller:
    """One request over one connection, of a caller that is a stranger at first."""

    def __init__(self) -> None:
        self.strangers = Strangers()
        self.reached: bytes | None = None
        """The body that arrived at Flower's application."""
        self.received = 0
        """Parts of the body that the server has read."""
        self.sent: list[dict[str, Any]] = []

    def asks(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        parts: tuple[bytes, ...] = (b"",),
        pause: float = 0.0,
    ) -> int:
        """Status of the answer to a POST."""
        asyncio.run(self._ask(path, headers or {}, parts, pause))
        return int(self.sent[0]["status"])

    async def _ask(
        self, path: str, headers: Mapping[str, str], parts: tuple[bytes, ...], pause: float
    ) -> None:
        application = FastAPI()

        async def answer(request: Request) -> dict[str, bool]:
            self.reached = await request.body()
            return {"reached": True}

        for known in KNOWN:
            application.post(known)(answer)
        application.add_middleware(Gate, keys=Keys(), token=TOKEN, strangers=self.strangers)
        self.strangers.add(CALLER, lambda: None)

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause)
            part, self.received = parts[self.received], self.received + 1
            return {"type": "http.request", "body": part, "more_body": self.received < len(parts)}

        async def send(message: Any) -> None:
            self.sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": CALLER,
            "server": ("server", 8000),
            "scheme": "https",
            "http_version": "1.1",
        }
        await application(scope, receive, send)

    @property
    def is_known(self) -> bool:
        return len(self.strangers) == 0


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (PULL, signed()),
        (PUSH, signed()),
        (f"{CONTROL}start-run", CONTROLLING),
        (f"{RUNTIME}push-object", IN_PROGRESS),
    ],
)
def test_a_caller_with_a_proof_is_admitted_and_known(path: str, headers: dict[str, str]) -> None:
    caller = Caller()
    assert caller.asks(path, headers, (b"one", b"two")) == 200
    assert caller.reached == b"onetwo"
    assert caller.is_known


@pytest.mark.parametrize("path", [f"{FLEET}activate-node", f"{RUNTIME}acquire-task"])
def test_a_caller_whose_proof_flower_accepts_is_known(path: str) -> None:
    caller = Caller()
    assert caller.asks(path, parts=(b"proof",)) == 200
    assert caller.is_known


def test_a_caller_that_asks_for_health_stays_a_stranger() -> None:
    caller = Caller()
    assert caller.asks("/health") == 200
    assert not caller.is_known


OTHER_PRIVATE, OTHER_PUBLIC = generate_key_pairs()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (PULL, {}),
        (PULL, signed(OTHER_PRIVATE, OTHER_PUBLIC)),
        (PULL, signed(OTHER_PRIVATE)),
        (PULL, signed(timestamp="later")),
        (PULL, {**signed(), "flwr-signature": "no base64"}),
        (PULL, {**signed(), "flwr-timestamp": "é"}),
        (PULL, CONTROLLING),
        (f"{FLEET}deactivate-node", {}),
        (f"{CONTROL}start-run", {}),
        (f"{CONTROL}register-node", signed()),
        (f"{CONTROL}start-run", {"authorization": f"Bearer {TOKEN}x"}),
        (f"{CONTROL}start-run", {"authorization": "Bearer é"}),
        (f"{CONTROL}start-run", {"x-forwarded-for": "127.0.0.1"}),
        (f"{RUNTIME}pull-task-input", {}),
        (f"{RUNTIME}push-object", {"flwr-task-token": "another"}),
        (f"{RUNTIME}responses", CONTROLLING),
    ],
)
def test_a_caller_without_a_proof_is_refused_before_its_body_is_read(
    path: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caller = Caller()
    assert caller.asks(path, headers) == 401
    assert (caller.reached, caller.received, caller.is_known) == (None, 0, False)
    # Else the server would read on.
    assert (b"connection", b"close") in caller.sent[0]["headers"]
    assert f"refused {path} to 127.0.0.1: no proof" in caplog.text


@pytest.mark.parametrize(
    "path", ["/docs", "/v1/fleet", "/v1/FLEET/x", "//v1/fleet/x", "/health/../v1/control/start-run"]
)
def test_other_paths_are_not_served(path: str) -> None:
    assert Caller().asks(path, {**signed(), **CONTROLLING}) == 403


def test_a_way_round_through_the_sites_path_leads_nowhere() -> None:
    assert Caller().asks("/v1/fleet/../control/start-run", signed()) == 404


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/health", {}), (f"{FLEET}activate-node", {}), (PULL, signed()), (PUSH, signed())],
)
def test_a_body_is_limited_by_its_declared_and_by_its_real_length(
    path: str, headers: dict[str, str]
) -> None:
    most = largest_body(path)
    declared = Caller()
    assert declared.asks(path, {**headers, "content-length": str(most + 1)}) == 413
    assert (declared.received, declared.reached) == (0, None)
    part = bytes(most // 2)
    sent = Caller()
    assert sent.asks(path, headers, (part, part, b"xx", *[part] * 9)) == 413
    assert (sent.received, sent.reached) == (3, None)
    fitting = Caller()
    assert fitting.asks(path, headers, (part, part)) == 200


def test_limits_follow_the_kind_of_a_message() -> None:
    assert largest_body(f"{FLEET}activate-node") < MIB
    assert largest_body(PULL) < largest_body(PUSH) < largest_body(f"{CONTROL}start-run") < 12 * MIB


def test_a_slow_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.05)
    caller = Caller()
    assert caller.asks(PUSH, signed(), (b"x",) * 1000, pause=0.02) == 408
    assert caller.reached is None
