"""The other end of a gRPC byte stream, in a process of its own: writes what comes into a new file each time.

``python -m fuse_tier.bench.grpc_receiver FILE`` prints its port. Only a reference to measure against.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


class _Receiver(grpc.GenericRpcHandler):
    def __init__(self, path: str) -> None:
        self._path = path

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Iterator[bytes], bytes]:
        return grpc.stream_unary_rpc_method_handler(self._write)

    def _write(self, parts: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            offset = 0
            for part in parts:
                offset += os.pwrite(fd, part, offset)
        finally:
            os.close(fd)
        return b""


def main() -> None:
    """Serves until it is terminated."""
    options = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(1), handlers=[_Receiver(sys.argv[1])], options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
