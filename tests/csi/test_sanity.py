"""The CSI community's own suite, csi-sanity, against our socket: all of its tests of Identity and Node pass.

It is built by ``make test-tools``. Its tests of a controller service are left out: inline volumes have none.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import trio

from csi import csi_pb2 as pb
from csi.csi_pb2_grpc import IdentityServicer, add_IdentityServicer_to_server
from tests.csi.conftest import Plugin
from tests.harness import needs

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.csi_sanity]

_ABOUT = ("Identity Service", "Node Service")
_POD = "sanity-pod"


def _field(number: int, content: bytes | str) -> bytes:
    """A field of a message, in protocol buffers' encoding (for contents of less than 128 bytes)."""
    content = content.encode() if isinstance(content, str) else content
    return bytes([number << 3 | 2, len(content)]) + content


class _Controller(IdentityServicer):
    """The suite makes volumes through a controller before it publishes them, and asks what that can before each test.

    There is none for inline volumes: this stands in for it, and says of each volume what kubelet says of a pod's.
    """

    def GetPluginInfo(self, request: object, context: object) -> pb.GetPluginInfoResponse:  # noqa: N802
        return pb.GetPluginInfoResponse(name="controller")

    def GetPluginCapabilities(self, request: object, context: object) -> pb.GetPluginCapabilitiesResponse:  # noqa: N802
        return pb.GetPluginCapabilitiesResponse()

    def Probe(self, request: object, context: object) -> pb.ProbeResponse:  # noqa: N802
        return pb.ProbeResponse()

    def can(self, _: bytes, __: object) -> bytes:
        # ControllerGetCapabilitiesResponse {capabilities {rpc {type}}}: SINGLE_NODE_MULTI_WRITER, which has no test.
        return _field(1, _field(1, b"\x08\x0d"))

    def create(self, _: bytes, __: object) -> bytes:
        said = {"ephemeral": "true", "pod.name": _POD, "pod.namespace": "default", "pod.uid": _POD}
        entries = (
            _field(3, _field(1, f"csi.storage.k8s.io/{key}") + _field(2, value)) for key, value in said.items()
        )
        # CreateVolumeResponse {volume {volume_id = 2, volume_context = 3}}, longer than a field of one length byte.
        volume = _field(2, "sanity-volume") + b"".join(entries)
        return b"\x0a" + bytes([len(volume) & 0x7F | 0x80, len(volume) >> 7]) + volume

    def delete(self, _: bytes, __: object) -> bytes:
        return b""

    def methods(self) -> grpc.GenericRpcHandler:
        calls = {
            "ControllerGetCapabilities": self.can,
            "CreateVolume": self.create,
            "DeleteVolume": self.delete,
        }
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()
        }
        return grpc.method_handlers_generic_handler("csi.v1.Controller", handlers)


@pytest.fixture
def controller() -> Iterator[str]:
    """The socket of that controller."""
    server = grpc.server(ThreadPoolExecutor(1))
    add_IdentityServicer_to_server(_Controller(), server)
    server.add_generic_rpc_handlers((_Controller().methods(),))
    with tempfile.TemporaryDirectory(prefix="ft-csi-") as place:
        server.add_insecure_port(f"unix:{place}/controller.sock")
        server.start()
        yield f"{place}/controller.sock"
        server.stop(None).wait()


async def test_csi_sanity_passes(
    plugin: Plugin, controller: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report = tmp_path / "report.json"
    program = needs.program("csi-sanity")
    assert program is not None
    mountdir = plugin.kubelet.directory / "pods" / _POD / "volumes" / "kubernetes.io~csi" / "ckpt"
    mountdir.parent.mkdir(parents=True)
    command = [
        program, f"--csi.endpoint={plugin.kubelet.socket}", f"--csi.controllerendpoint={controller}",
        "--ginkgo.no-color", f"--ginkgo.json-report={report}",
        f"--csi.mountdir={mountdir}", f"--csi.stagingdir={tmp_path / 'staging'}",
        r"--ginkgo.skip=\[Controller Server\]",
    ]  # fmt: skip
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    (suite,) = json.loads(report.read_text())
    cases = [case for case in suite["SpecReports"] if case["LeafNodeType"] == "It"]
    states = [case["State"] for case in cases]
    summary = {state: states.count(state) for state in sorted(set(states))}
    record_property("summary", summary)
    print(summary)  # noqa: T201 - the figures, shown with -rP
    failed = [" ".join([*case["ContainerHierarchyTexts"], case["LeafNodeText"]]) for case in cases
              if case["State"] not in ("passed", "skipped", "pending")]  # fmt: skip
    assert failed == [], done.stdout.decode(errors="replace")[-6000:]
    assert done.returncode == 0
    ours = [
        case for case in cases if set(case["ContainerHierarchyTexts"]) & set(_ABOUT) and case["State"] == "passed"
    ]
    assert len(ours) >= 14
