"""The gRPC services Identity and Node of the CSI specification: requests are read here, and answered with messages.

What a request means is decided elsewhere (targets.py, context.py, publishing.py); what is refused here is what the
specification says must be there.
"""

from __future__ import annotations

import os
from typing import Final

from google.protobuf.wrappers_pb2 import BoolValue

from csi import csi_pb2 as pb
from csi.context import read_context
from csi.driver import Driver
from csi.health import Health
from csi.publishing import Order, Publisher
from csi.records import Records
from csi.refusals import malformed, not_found
from csi.stats import Usage, stats_of
from csi.targets import Target
from fuse_tier import __version__
from fuse_tier.wire.grpc import Caller

DRIVER_NAME: Final = "multitier-checkpoint.csi.storage.gke.io"
_MODES: Final = (
    pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER,
    pb.VolumeCapability.AccessMode.SINGLE_NODE_READER_ONLY,
    pb.VolumeCapability.AccessMode.SINGLE_NODE_SINGLE_WRITER,
)
_MOUNT_FLAGS: Final = frozenset({"nosuid", "nodev", "rw", "ro"})
_NO_GROUP: Final = (1 << 32) - 1  # what chown(2) takes for "as it is"
_LONGEST_ID: Final = 128  # the specification's, for strings without another limit


class IdentityService:
    """Who we are, and whether we are ready."""

    def __init__(self, driver: Driver, name: str) -> None:
        self._driver = driver
        self._name = name

    async def GetPluginInfo(self, request: pb.GetPluginInfoRequest, caller: Caller) -> pb.GetPluginInfoResponse:  # noqa: N802
        """Name and version."""
        return pb.GetPluginInfoResponse(name=self._name, vendor_version=__version__)

    async def GetPluginCapabilities(  # noqa: N802
        self, request: pb.GetPluginCapabilitiesRequest, caller: Caller
    ) -> pb.GetPluginCapabilitiesResponse:
        """None beyond a node plugin's: there is no controller to ask."""
        return pb.GetPluginCapabilitiesResponse()

    async def Probe(self, request: pb.ProbeRequest, caller: Caller) -> pb.ProbeResponse:  # noqa: N802
        """Ready when the supervisor and the worker answer."""
        reason = await self._driver.why_not_ready()
        return pb.ProbeResponse(ready=BoolValue(value=not reason))


class NodeService:
    """Volumes of this node."""

    def __init__(
        self,
        driver: Driver,
        publisher: Publisher,
        records: Records,
        health: Health,
        *,
        kubelet: str,
        volume_limit: int,
    ) -> None:
        self._driver = driver
        self._publisher = publisher
        self._records = records
        self._health = health
        self._kubelet = kubelet
        self._volume_limit = volume_limit

    async def NodePublishVolume(  # noqa: N802
        self, request: pb.NodePublishVolumeRequest, caller: Caller
    ) -> pb.NodePublishVolumeResponse:
        """Mounts a pod's volume."""
        await self._publisher.publish(self._read(request))
        return pb.NodePublishVolumeResponse()

    def _read(self, request: pb.NodePublishVolumeRequest) -> Order:
        volume_id = _volume_id(request.volume_id)
        if not request.target_path:
            raise malformed("target_path is missing")
        if not request.HasField("volume_capability"):
            raise malformed("volume_capability is missing")
        capability = request.volume_capability
        if not capability.HasField("mount"):
            raise malformed("only volumes to be mounted are served, no block devices: set volumeMode: Filesystem")
        if capability.access_mode.mode not in _MODES:
            mode = pb.VolumeCapability.AccessMode.Mode.Name(capability.access_mode.mode)
            raise malformed(f"a volume is one pod's, on one node: access mode {mode} is none of ours")
        if unknown := sorted(set(capability.mount.mount_flags) - _MOUNT_FLAGS):
            raise malformed(
                f"mount option {unknown[0]!r} is none of ours: there are {', '.join(sorted(_MOUNT_FLAGS))}"
            )
        pod, wishes = read_context(request.volume_context)
        target = Target.parse(self._kubelet, request.target_path)
        if target.pod_uid != pod.uid:
            raise malformed(f"target path {target.path} belongs to pod {target.pod_uid}, and the volume to {pod}")
        group = capability.mount.volume_mount_group
        if group and not (group.isascii() and group.isdigit() and int(group) < _NO_GROUP):
            raise malformed(f"volume_mount_group {group!r} is no group number: correct fsGroup in the pod's manifest")
        read_only = request.readonly or "ro" in capability.mount.mount_flags
        read_only = read_only or capability.access_mode.mode == pb.VolumeCapability.AccessMode.SINGLE_NODE_READER_ONLY
        return Order(volume_id, target, pod, wishes, read_only, int(group) if group else None)

    async def NodeUnpublishVolume(  # noqa: N802
        self, request: pb.NodeUnpublishVolumeRequest, caller: Caller
    ) -> pb.NodeUnpublishVolumeResponse:
        """Ends a pod's volume."""
        volume_id = _volume_id(request.volume_id)
        if not request.target_path:
            raise malformed("target_path is missing")
        await self._publisher.unpublish(volume_id, Target.parse(self._kubelet, request.target_path))
        return pb.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(  # noqa: N802
        self, request: pb.NodeGetVolumeStatsRequest, caller: Caller
    ) -> pb.NodeGetVolumeStatsResponse:
        """How full it is, and whether it is well."""
        volume_id = _volume_id(request.volume_id)
        if not request.volume_path:
            raise malformed("volume_path is missing")
        if not os.path.isabs(request.volume_path):
            raise not_found(f"volume {volume_id} is not published at {request.volume_path!r}")
        stats = await stats_of(volume_id, request.volume_path, self._driver, self._records, self._health)
        return pb.NodeGetVolumeStatsResponse(
            usage=[_usage(stats.bytes, pb.VolumeUsage.BYTES), _usage(stats.inodes, pb.VolumeUsage.INODES)],
            volume_condition=pb.VolumeCondition(
                abnormal=bool(stats.trouble), message=stats.trouble or "the mount answers"
            ),
        )

    async def NodeGetCapabilities(  # noqa: N802
        self, request: pb.NodeGetCapabilitiesRequest, caller: Caller
    ) -> pb.NodeGetCapabilitiesResponse:
        """Statistics with the volume's condition, and the pod's group."""
        rpc = pb.NodeServiceCapability.RPC
        kinds = (rpc.GET_VOLUME_STATS, rpc.VOLUME_CONDITION, rpc.VOLUME_MOUNT_GROUP)
        return pb.NodeGetCapabilitiesResponse(
            capabilities=[pb.NodeServiceCapability(rpc=rpc(type=kind)) for kind in kinds]
        )

    async def NodeGetInfo(self, request: pb.NodeGetInfoRequest, caller: Caller) -> pb.NodeGetInfoResponse:  # noqa: N802
        """The node's name, how many volumes it bears, and what it fails together with."""
        domain = await self._driver.domain()
        labels = {
            "topology.kubernetes.io/zone": domain.zone,
            "cloud.google.com/gke-nodepool": domain.pool,
            "kubernetes.io/hostname": domain.host,
        }
        segments = {label: value for label, value in labels.items() if value}
        return pb.NodeGetInfoResponse(
            node_id=self._driver.node,
            max_volumes_per_node=self._volume_limit,
            accessible_topology=pb.Topology(segments=segments) if segments else None,
        )


def _volume_id(text: str) -> str:
    if not text:
        raise malformed("volume_id is missing")
    if len(text.encode()) > _LONGEST_ID:
        raise malformed(f"volume_id is longer than {_LONGEST_ID} bytes")
    return text


def _usage(usage: Usage, unit: pb.VolumeUsage.Unit.ValueType) -> pb.VolumeUsage:
    return pb.VolumeUsage(available=usage.available, total=usage.total, used=usage.used, unit=unit)
