"""An HTTP proxy that stands before the emulator and fails as it is told: what an emulator never does by itself.

Faults are taken from a list, in order, by the requests that they match; all other requests pass.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host"})


@dataclass(slots=True)
class Fault:
    """What befalls the next ``times`` requests of a method whose path holds ``path``."""

    method: str
    path: str
    status: int = 0  # answered in place of the emulator
    cut_answer_after: int | None = None  # bytes of the body; then the connection is reset
    cut_request_after: int | None = None  # likewise, of what is uploaded
    change_request: bool = False  # one bit of what is uploaded
    lose_answer: bool = False  # after the emulator has done what was asked
    times: int = 1


@dataclass(slots=True)
class Proxy:
    """A running proxy."""

    endpoint: str
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str, length: int) -> Fault | None:
        """The fault that this request, with a body of so many bytes, meets."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            for fault in self.faults:
                long_enough = fault.cut_request_after is None or fault.cut_request_after < length
                if fault.times and fault.method == method and fault.path in path and long_enough:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def faulty(endpoint: str) -> Iterator[Proxy]:
    """Runs a proxy before an endpoint."""

    class Handler(_Handler):
        target = urlsplit(endpoint).netloc

    with _Server(("127.0.0.1", 0), Handler) as server:
        Handler.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Handler.proxy
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away in the middle are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    target: ClassVar[str]
    proxy: ClassVar[Proxy]

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        fault = self.proxy.take(self.command, self.path, length)
        if fault is not None and fault.cut_request_after is not None:
            self.rfile.read(fault.cut_request_after)
            self._reset()
            return
        body = bytearray(self.rfile.read(length))
        if fault is not None and fault.change_request:
            body[-100] ^= 1  # within the content: the closing boundary is shorter
        if fault is not None and fault.status:
            self._answer(fault.status, {}, json.dumps({"error": {"message": "the proxy says so"}}).encode())
            return
        upstream = http.client.HTTPConnection(self.target, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream.request(self.command, self.path, bytes(body), headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault is not None and fault.lose_answer:
            self._reset()
            return
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
        self._answer(answer.status, kept, content, None if fault is None else fault.cut_answer_after)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _pass_on  # noqa: N815 - names of http.server

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self._reset()

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
