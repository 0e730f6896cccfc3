"""Stands between a program and a real API server, and does with calls what overload and bad networks do.

What comes through is the server's own answer. Each kind of fault happens to a share of the calls, but to no watch.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3
from kubernetes.client import ApiClient, Configuration

from controller.local.kube import ApiServer

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}
_BUSY = b'{"kind":"Status","status":"Failure","message":"too many requests","reason":"TooManyRequests","code":429}'


class ApiFaults:
    """``shares`` are by kind: ``busy`` (429; the server is not asked), ``slow``, ``lost`` (done, not answered)."""

    def __init__(self, server: ApiServer, seed: int) -> None:
        self.shares: dict[str, float] = {}
        self.happened: Counter[str] = Counter()
        self.asked = 0  # watches and leases aside
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = server
        certificate = str(server.directory / "certs" / "apiserver.crt")
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=32, ca_certs=certificate, retries=False)
        self._listening = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._listening.daemon_threads = True

    @property
    def client(self) -> ApiClient:
        """Of who is to meet the faults; with all rights."""
        configuration = Configuration(host=f"http://127.0.0.1:{self._listening.server_port}")
        configuration.api_key = {"authorization": f"Bearer admin-{self._server.token}"}
        configuration.retries = False
        return ApiClient(configuration)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            self._listening.shutdown()
            thread.join()
            self._listening.server_close()

    def choose(self, path: str) -> str:
        if "watch=1" in path:
            return ""
        with self._lock:
            self.asked += "/leases/" not in path
            left = self._random.random()
            for kind, share in self.shares.items():
                if left < share:
                    self.happened[kind] += 1
                    return kind
                left -= share
        return ""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        faults, target = self, f"https://127.0.0.1:{self._server.port}"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = faults.choose(self.path)
                if fault == "busy":
                    self._answer(429, {"Content-Type": "application/json", "Retry-After": "1"}, _BUSY)
                    return
                if fault == "slow":
                    time.sleep(0.3)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in {*_HOP, "host"}}
                try:
                    found = faults._pool.request(
                        self.command, target + self.path, body=body or None, headers=headers, preload_content=False
                    )
                    kept = {name: value for name, value in found.headers.items() if name.lower() not in _HOP}
                    if "watch=1" in self.path:
                        self._stream(found, kept)
                    elif fault == "lost":
                        found.read()
                        self.close_connection = True
                    else:
                        self._answer(found.status, kept, found.read())
                except (urllib3.exceptions.HTTPError, OSError):
                    self.close_connection = True  # as the server has gone, so do we

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do  # noqa: N815 - names of the library

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self, found: urllib3.BaseHTTPResponse, headers: dict[str, str]) -> None:
                self.send_response_only(found.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for part in found.stream(amt=None, decode_content=False):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        return Handler
