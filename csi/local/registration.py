"""Stands in for the part of kubelet that looks for plugins: by sockets in its ``plugins_registry``.

Whoever answers at one of those says which plugin it speaks for, and where that one's own socket is. Kubelet asks the
plugin what node it is, and tells the first whether it has taken it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi import csi_pb2 as csi
from csi.csi_pb2_grpc import NodeStub
from csi.local import registration_pb2 as pb
from csi.local.kubelet import ask
from csi.local.registration_pb2_grpc import RegistrationStub
from fuse_tier.errors import FuseTierError

_KIND: Final = "CSIPlugin"
_MAJOR_VERSION: Final = "1"


@dataclass(frozen=True, slots=True)
class Registered:
    """What kubelet knows of a plugin from then on."""

    name: str
    endpoint: str
    node_id: str
    volume_limit: int
    topology: Mapping[str, str]


def sockets(kubelet: Path) -> list[Path]:
    """Those that are looked at."""
    return sorted(path for path in (kubelet / "plugins_registry").glob("[!.]*") if path.is_socket())


async def register(socket: Path) -> Registered:
    """Takes the plugin that is spoken for there, or tells why not. Raises FuseTierError, Refused."""
    info = await ask(str(socket), RegistrationStub, "GetInfo", pb.InfoRequest())
    reason = _why_refused(info)
    if reason:
        await _tell(socket, reason)
        raise FuseTierError(reason)
    node = await ask(info.endpoint, NodeStub, "NodeGetInfo", csi.NodeGetInfoRequest())
    await _tell(socket, "")
    topology = dict(node.accessible_topology.segments)
    return Registered(info.name, info.endpoint, node.node_id, node.max_volumes_per_node, topology)


def _why_refused(info: pb.PluginInfo) -> str:
    if info.type != _KIND:
        return f"{info.name} is a {info.type!r}, and no {_KIND}"
    if not info.endpoint:
        return f"{info.name} says nothing of its socket"
    if not any(version.removeprefix("v").split(".")[0] == _MAJOR_VERSION for version in info.supported_versions):
        return f"{info.name} speaks {', '.join(info.supported_versions)} of CSI, and kubelet {_MAJOR_VERSION}"
    return ""


async def _tell(socket: Path, error: str) -> None:
    status = pb.RegistrationStatus(plugin_registered=not error, error=error)
    await ask(str(socket), RegistrationStub, "NotifyRegistrationStatus", status)
