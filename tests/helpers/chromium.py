"""A headless Chromium over its DevTools pipe: pages, their requests and their errors."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
LIMIT = 240.0
"""Seconds that a test waits for anything."""
ERRORS = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")


class Chromium:
    """One page of a browser.

    Attributes:
        events: Every event of the page so far, in order.
    """

    def __init__(self, profile: Path) -> None:
        """Takes the folder that the browser may write to."""
        assert BROWSER is not None
        self.events: list[dict[str, Any]] = []
        self._read_end, theirs_out = _pipe()
        theirs_in, self._write_end = _pipe()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # The browser reads from 3 and writes to 4.
        redirected = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", BROWSER, *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None

    def __enter__(self) -> Self:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read_end)
        os.close(self._write_end)

    def open(self, url: str) -> None:
        """Opens a page."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, met: Callable[[Any], bool] = bool) -> Any:
        """Waits until the value of an expression meets a condition; returns it."""
        deadline = time.monotonic() + LIMIT
        while not met(value := self.evaluate(expression)):
            assert time.monotonic() < deadline, (expression, value, self.errors)
            time.sleep(0.05)
        return value

    @property
    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        sent = [one for one in self.events if one["method"] == "Network.requestWillBeSent"]
        return [one["params"]["request"]["url"] for one in sent]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Exceptions, logged errors and failed requests."""
        return [one for one in self.events if one["method"] in ERRORS]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the DevTools protocol; returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            if "method" in answer:
                self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, *_ = select.select([self._read_end], [], [], LIMIT)
            assert ready, "the browser does not answer"
            read = os.read(self._read_end, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))


def _pipe() -> tuple[int, int]:
    """A pipe whose ends have numbers from 10 on, so that none is 3 or 4."""
    ends = os.pipe()
    moved = [fcntl(end, F_DUPFD, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
