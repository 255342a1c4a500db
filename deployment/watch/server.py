"""The live page over HTTP: read-only, and nothing but an allow-list of a run's files."""

import hashlib
import ipaddress
import json
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from urllib.parse import unquote, urlsplit

from deployment.watch.page import SCRIPT, as_json, live_page, refused_page
from deployment.watch.state import read_state, refuse_links
from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.first_screen_page import SCRIPT_HASH
from mediffusion_core.reporting.report import report_page

PICTURES = "/pictures/"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; "
    f"script-src 'self' 'sha256-{SCRIPT_HASH}'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Content = tuple[str, bytes]
"""Media type and bytes of an answer."""


class WatchServer(ThreadingHTTPServer):
    """Serves one run's live page; `serve_forever` answers until `shutdown`."""

    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int) -> None:
        """Takes the folder of the run, and an address of this machine; port 0 is any free one.

        Raises:
            UserError: if the address can't be had.
        """
        self.folder = folder
        try:
            family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self.address_family = family
            super().__init__(address[:2], WatchHandler)  # type: ignore[arg-type]
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"--host {host} --port {port}: {reason}; choose another address or port"
            ) from None
        self.is_local = ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def address(self) -> str:
        """The page's address."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def server_bind(self) -> None:
        """Binds the socket, without asking the network for the host's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Reports an error; that a browser went away is none."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class WatchHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: WatchServer
    server_version, sys_version = "fed-mediffusion", ""
    timeout = 30  # seconds for a request

    def do_GET(self) -> None:
        """Sends a page or a picture."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Sends the headers alone."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""

    def _answer(self, with_body: bool) -> None:
        status, content = HTTPStatus.OK, None
        try:
            if self._is_asked_by_its_name():
                content = self._content(self.path.partition("?")[0])
            status = HTTPStatus.OK if content else HTTPStatus.NOT_FOUND
        except UserError as error:  # a file of the run that cannot be read
            status = HTTPStatus.SERVICE_UNAVAILABLE
            reason = str(error).replace(str(self.server.folder), self.server.folder.name)
            content = "text/html; charset=utf-8", refused_page(reason).encode()
        except OSError:  # removed since it was listed
            status = HTTPStatus.NOT_FOUND
        kind, body = content or ("text/plain; charset=utf-8", b"not found\n")
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _is_asked_by_its_name(self) -> bool:
        """Whether a page on loopback is asked for by a name of loopback.

        A web page elsewhere can give its own name this machine's address, and read what it gets.
        """
        if not self.server.is_local:
            return True
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        return name in ("localhost", self.server.server_address[0])

    def _content(self, path: str) -> Content | None:
        folder = self.server.folder
        answers: dict[str, Callable[[], Content]] = {
            "/": lambda: ("text/html; charset=utf-8", _page(folder)),
            "/state.json": lambda: ("application/json", _state(folder)),
            "/watch.js": lambda: ("text/javascript; charset=utf-8", SCRIPT.encode()),
        }
        if path in answers:
            return answers[path]()
        name = unquote(path.removeprefix(PICTURES)) if path.startswith(PICTURES) else ""
        picture = _pictures(folder).get(name)
        return ("image/png", picture.read_bytes()) if picture else None


def _page(folder: Path) -> bytes:
    state = read_state(folder)
    return live_page(report_page(folder, state.summary)).encode()


def _state(folder: Path) -> bytes:
    return json.dumps(as_json(read_state(folder), _version(folder))).encode()


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures of the run by name, without links."""
    refuse_links(folder)
    found = (folder / "pictures").glob("*.png")
    return {path.name: path for path in found if path.is_file() and not path.is_symlink()}


def _version(folder: Path) -> str:
    """Another text as soon as a file of the report is another one."""
    files = [folder / "metrics.jsonl", folder / "summary.json", *_pictures(folder).values()]
    found = [(path.name, path.stat()) for path in files if path.is_file()]
    stats = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in found]
    return hashlib.sha256(repr(sorted(stats)).encode()).hexdigest()[:16]
