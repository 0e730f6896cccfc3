"""An HTTP proxy that stands before the emulator and fails as it is told: what an emulator never does by itself.

Faults are taken from a list, in order, by the requests that they match; all other requests pass. ``protected`` has
objects that may not be deleted, ``accounts`` the tokens that count. Requests and the faults that befell them are
counted.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host"})
_PIECE = 1 << 16


@dataclass(slots=True)
class Fault:
    """What befalls the next ``times`` requests of a method whose path holds ``path``."""

    method: str
    path: str
    status: int = 0  # answered in place of the emulator
    says: str = "the proxy says so"  # with that status
    cut_answer_after: int | None = None  # bytes of the body; then the connection is reset
    short_answer: int | None = None  # bytes of the body, with nothing that says that more should come
    stall_answer_after: int | None = None  # bytes of the body; then nothing more comes
    cut_request_after: int | None = None  # likewise, of what is uploaded
    stall_request_after: int | None = None  # of what is uploaded, after which nothing more is taken in
    change_request: bool = False  # one bit of what is uploaded
    change_answer: bool = False  # one bit of what is downloaded
    lose_answer: bool = False  # after the emulator has done what was asked
    first: Callable[[], object] | None = None  # is called before the request is passed on
    times: int = 1
    spares: int = 0  # such requests pass before

    @property
    def kind(self) -> str:
        """For counting."""
        named = ("cut_answer_after", "short_answer", "stall_answer_after", "cut_request_after", "stall_request_after")
        flags = ("change_request", "change_answer", "lose_answer", "first")
        found = [name for name in named if getattr(self, name) is not None]
        found += [name for name in flags if getattr(self, name)]
        return " ".join(found) or str(self.status)


@dataclass(slots=True)
class Proxy:
    """A running proxy."""

    endpoint: str
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    befell: Counter[str] = field(default_factory=Counter)
    protected: dict[str, str] = field(default_factory=dict)  # a part of an object's name -> what is said of it
    settings: dict[str, Any] = field(default_factory=dict)  # which the bucket says to have; emulators know few
    accounts: set[str] | None = None  # tokens that count; without, nobody is asked for one
    refuses_calls: bool = False  # of a batch with another token each one is refused, and not the batch
    clock_ahead: float = 0.0  # seconds, of what answers say that time it is
    sent: int = 0  # bytes of requests' bodies
    received: int = 0  # bytes of answers'
    closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str, length: int) -> Fault | None:
        """The fault that this request, with a body of so many bytes, meets."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            self.sent += length
            for fault in self.faults:
                long_enough = max(fault.cut_request_after or 0, fault.stall_request_after or 0) <= length
                if fault.times and fault.method == method and fault.path in path and long_enough:
                    if fault.spares:
                        fault.spares -= 1
                        continue
                    fault.times -= 1
                    self.befell[f"{method} {fault.kind}"] += 1
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
            Handler.proxy.closing.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away in the middle are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    target: ClassVar[str]
    proxy: ClassVar[Proxy]

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        fault = self.proxy.take(self.command, self.path, length) or Fault("", "", times=0)
        if fault.cut_request_after is not None or fault.stall_request_after is not None:
            self.rfile.read(fault.cut_request_after or fault.stall_request_after)
            if fault.stall_request_after is not None:
                self.proxy.closing.wait()
            self._reset()
            return
        body = bytearray(self.rfile.read(length))
        if fault.change_request:
            # Within the content: the head and the closing boundary are shorter; of a pack, in one of its files.
            body[len(body) // 2 if len(body) > _PIECE else -100] ^= 1
        if fault.first is not None:
            fault.first()
        if self._is_stranger():
            if self.proxy.refuses_calls and self.path.startswith("/batch/"):
                self._refuse_calls(bytes(body))
            else:
                self._say(401, "Invalid Credentials")
            return
        if fault.status:
            self._say(fault.status, fault.says)
            return
        if self.command == "DELETE" and (said := self._protection(self.path)):
            self._say(403, said)
            return
        refused: dict[str, str] = {}
        if self.path.startswith("/batch/") and self.proxy.protected:
            body, refused = self._without_protected(bytes(body))
        upstream = http.client.HTTPConnection(self.target, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream.request(self.command, self.path, bytes(body), headers)
        answer = upstream.getresponse()
        content = bytearray(answer.read())
        self.proxy.received += len(content)
        upstream.close()
        if fault.lose_answer:
            self._reset()
            return
        if fault.change_answer and content:
            content[len(content) // 2] ^= 1
        if self.proxy.settings and self.command == "GET" and "/o" not in self.path:
            content = bytearray(json.dumps(json.loads(content) | self.proxy.settings).encode())
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
        for number, said in refused.items():
            content[:0] = _refusal(kept["Content-Type"].partition("boundary=")[2], number, said)
        self._answer(answer.status, kept, bytes(content), fault)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _pass_on  # noqa: N815 - names of http.server

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Of whose clock the proxy speaks."""
        return super().date_time_string((timestamp or time.time()) + self.proxy.clock_ahead)

    def _is_stranger(self) -> bool:
        known = self.proxy.accounts
        return known is not None and self.headers.get("Authorization", "").removeprefix("Bearer ") not in known

    def _protection(self, path: str) -> str | None:
        return next((said for part, said in self.proxy.protected.items() if part in unquote(path)), None)

    def _without_protected(self, body: bytes) -> tuple[bytearray, dict[str, str]]:
        boundary = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
        passed, refused = bytearray(), {}
        for part in body.split(boundary)[1:-1]:
            line = part.partition(b"\r\n\r\n")[2].partition(b"\r\n")[0].decode()
            said = self._protection(line) if line.startswith("DELETE") else None
            if said is None:
                passed += boundary + part
            else:
                refused[part.partition(b"Content-ID: <")[2].partition(b">")[0].decode()] = said
        return passed + boundary + b"--\r\n", refused

    def _refuse_calls(self, body: bytes) -> None:
        numbers = re.findall(rb"Content-ID: <([0-9]+)>", body)
        said = b"".join(_refusal("b", number.decode(), "Invalid Credentials", 401) for number in numbers)
        headers = {"Content-Type": "multipart/mixed; boundary=b"}
        self._answer(200, headers, said + b"--b--\r\n", Fault("", "", times=0))

    def _say(self, status: int, message: str) -> None:
        text = json.dumps({"error": {"code": status, "message": message}}).encode()
        self._answer(status, {"Content-Type": "application/json"}, text, Fault("", "", times=0))

    def _answer(self, status: int, headers: dict[str, str], content: bytes, fault: Fault) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "date":
                self.send_header(name, value)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Length", str(len(content) if fault.short_answer is None else fault.short_answer))
        self.end_headers()
        cut = [at for at in (fault.cut_answer_after, fault.short_answer, fault.stall_answer_after) if at is not None]
        # At least a byte is lacking: else a client would take the connection for a good one, and use it again.
        self.wfile.write(content[: min(cut[0], len(content) - 1)] if cut and content else content)
        if fault.stall_answer_after is not None:
            self.wfile.flush()
            self.proxy.closing.wait()
        if cut and fault.short_answer is None:
            self._reset()

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _refusal(boundary: str, number: str, said: str, status: int = 403) -> bytes:
    text = json.dumps({"error": {"code": status, "message": said}})
    lines = (f"--{boundary}", "Content-Type: application/http", f"Content-ID: <response-{number}>", "")
    answer = (f"HTTP/1.1 {status} Refused", "Content-Type: application/json", "", text, "")
    return "\r\n".join((*lines, *answer)).encode()
