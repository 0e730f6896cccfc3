"""Stands in for the sidecars ``node-driver-registrar`` and ``livenessprobe`` where they are not on this machine.

They take the options that the daemonset gives, make the calls of the plugin that the originals make, and answer at
the same sockets and paths: ``python -m tests.csi.sidecars csi-node-driver-registrar --csi-address=…``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from csi import csi_pb2 as csi
from csi.csi_pb2_grpc import IdentityStub
from csi.local import registration_pb2 as pb
from csi.local.registration_pb2_grpc import RegistrationServicer, add_RegistrationServicer_to_server
from tests.harness.needs import SIDECARS

REGISTRAR, LIVENESS_PROBE = SIDECARS


class _Registration(RegistrationServicer):
    def __init__(self, name: str, endpoint: str) -> None:
        self._info = pb.PluginInfo(type="CSIPlugin", name=name, endpoint=endpoint, supported_versions=["1.0.0"])

    def GetInfo(self, request: object, context: object) -> pb.PluginInfo:  # noqa: N802
        return self._info

    def NotifyRegistrationStatus(  # noqa: N802
        self, request: pb.RegistrationStatus, context: object
    ) -> pb.RegistrationStatusResponse:
        if not request.plugin_registered:
            sys.stderr.write(f"kubelet refuses it: {request.error}\n")
            sys.stderr.flush()
            os._exit(1)
        return pb.RegistrationStatusResponse()


def _ask(address: str, call: str, request: Any, timeout: float) -> Any:
    with grpc.insecure_channel(f"unix:{address}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        return getattr(IdentityStub(channel), call)(request, timeout=timeout, wait_for_ready=True)


def _register(options: argparse.Namespace) -> Callable[[], bool]:
    name = _ask(options.csi_address, "GetPluginInfo", csi.GetPluginInfoRequest(), 60.0).name
    socket = f"{options.plugin_registration_path}/{name}-reg.sock"
    server = grpc.server(ThreadPoolExecutor(2))
    add_RegistrationServicer_to_server(_Registration(name, options.kubelet_registration_path), server)
    os.umask(0o077)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return lambda: server is not None and os.path.exists(socket)


def _probe(options: argparse.Namespace) -> Callable[[], bool]:
    seconds = float(options.probe_timeout.removesuffix("s"))

    def is_ready() -> bool:
        try:
            return bool(_ask(options.csi_address, "Probe", csi.ProbeRequest(), seconds).ready.value)
        except grpc.RpcError:
            return False

    return is_ready


def _serve(endpoint: str, is_well: Callable[[], bool]) -> None:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response((200 if is_well() else 500) if self.path == "/healthz" else 404)
            self.end_headers()

    host, _, port = endpoint.rpartition(":")
    ThreadingHTTPServer((host, int(port)), Answers).serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sidecar", choices=(REGISTRAR, LIVENESS_PROBE))
    parser.add_argument("--csi-address", required=True)
    parser.add_argument("--kubelet-registration-path")
    parser.add_argument("--plugin-registration-path", default="/registration")
    parser.add_argument("--http-endpoint", required=True)
    parser.add_argument("--probe-timeout", default="1s")
    options = parser.parse_args()
    _serve(options.http_endpoint, _register(options) if options.sidecar == REGISTRAR else _probe(options))


if __name__ == "__main__":
    main()
