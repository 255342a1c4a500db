"""The server's open connections, with few of callers that it does not know.

Any caller can open connections, and each costs memory before a byte of a request arrives: with TLS
hundreds of kilobytes, most of it a buffer of asyncio's. uvicorn accepts all of them and keeps a
silent one for ever. Here the buffer is smaller, and only a fixed number of strangers has a
connection at a time. The next ones wait in the kernel's queue until one leaves, is recognised, or
has been there for `GRACE` seconds and is closed. Connections of recognised callers are not limited.
"""

import asyncio
import socket
import sys
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mediffusion_core.common.logs import log

MOST = 512
"""Connections of strangers at a time."""
GRACE = 1.0
"""Seconds in which no stranger is closed: a TLS handshake and the head of a request."""
QUEUE = 2048
"""Connections that wait in the kernel, where they cost the process nothing."""
TLS_BUFFER = 2**15
"""Bytes that asyncio reads at once from a TLS connection; it would take 256 KiB for each."""
KEEP_ALIVE = 15
"""Seconds for which an idle connection stays open. Sites call every three seconds."""

Address = tuple[str, int]


@dataclass
class _Stranger:
    since: float
    close: Callable[[], object]


class Strangers:
    """Connections whose callers have not been recognised, the oldest first."""

    def __init__(self) -> None:
        self._connections: dict[Address, _Stranger] = {}
        self._left = asyncio.Event()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, address: Address, close: Callable[[], object]) -> None:
        """Adds a connection, and the function that closes it."""
        self._connections[address] = _Stranger(asyncio.get_running_loop().time(), close)

    def close_with(self, address: Address, close: Callable[[], object]) -> None:
        """Changes the function that closes a connection."""
        if address in self._connections:
            self._connections[address].close = close

    def recognise(self, address: Address) -> None:
        """Removes a connection whose caller has shown its proof, or that is closed."""
        if self._connections.pop(address, None):
            self._left.set()

    async def place(self) -> None:
        """Waits until there is a place for one more, and closes the oldest one if need be."""
        loop = asyncio.get_running_loop()
        while len(self) >= MOST:
            address, oldest = next(iter(self._connections.items()))
            remaining = oldest.since + GRACE - loop.time()
            if remaining <= 0:
                self.recognise(address)
                oldest.close()
                continue
            self._left.clear()
            try:
                await asyncio.wait_for(self._left.wait(), remaining)
            except TimeoutError:
                continue


class _Protocol(H11Protocol):
    """uvicorn's HTTP protocol that limits the length of headers; reports its end."""

    def __init__(self, strangers: Strangers, **options: Any) -> None:
        super().__init__(**options)
        self._strangers = strangers

    def connection_lost(self, exc: Exception | None) -> None:
        if self.client is not None:
            self._strangers.recognise(self.client)
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn's server, which accepts connections only while there is a place."""

    def __init__(self, config: uvicorn.Config, strangers: Strangers) -> None:
        super().__init__(config)
        self._strangers = strangers
        self._listener = config.bind_socket()
        self._listener.listen(QUEUE)
        self._listener.setblocking(False)
        self._listener.set_inheritable(False)
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # without listeners of uvicorn's own
        if self.started:
            self._start(self._accept())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._tasks:
            task.cancel()
        self._listener.close()
        await super().shutdown(sockets=[])

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._strangers.place()
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:  # no more descriptors
                log.error(f"a connection is not accepted: {error.strerror}")
                await asyncio.sleep(GRACE)
                continue
            address = (str(peer[0]), int(peer[1]))
            task = self._start(self._welcome(connection, address))
            self._strangers.add(address, task.cancel)

    async def _welcome(self, connection: socket.socket, address: Address) -> None:
        """Makes the TLS handshake, and leaves the connection to uvicorn."""
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self.config.ssl,
                ssl_shutdown_timeout=GRACE if self.config.ssl else None,
            )
        except (OSError, asyncio.CancelledError):
            self._strangers.recognise(address)
        else:
            self._strangers.close_with(address, transport.abort)

    def _protocol(self) -> _Protocol:
        return _Protocol(
            self._strangers,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def serve(strangers: Strangers, **options: Any) -> None:
    """Serves an application as `uvicorn.run` does, with few connections of strangers.

    Args:
        strangers: Told by the application of callers that it recognises.
        options: Those of `uvicorn.run`.
    """
    SSLProtocol.max_size = TLS_BUFFER
    config = uvicorn.Config(
        loop="asyncio", ws="none", proxy_headers=False, timeout_keep_alive=KEEP_ALIVE, **options
    )
    server = _Server(config, strangers)
    server.run()
    if not server.started:
        sys.exit(1)
