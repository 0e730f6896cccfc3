"""The driver's other processes on this node, as it asks them: the worker for a mount, the supervisor for its end.

Either may be started anew at any time. A connection is made for each question, and one that is refused is tried again
for a while: restarting takes a second or two, and a pod's start should not fail for that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
import trio

from csi.context import Pod
from csi.places import Place
from csi.refusals import ran_out
from fuse_tier.config import NodeConfig
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.members import Domain
from fuse_tier.mount.table import Mount, mount_at
from fuse_tier.replicate.supervisor import Supervisor
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import NodeStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import domain_from_wire

T = TypeVar("T")

log = structlog.get_logger(__name__)

_AGAIN_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Mounted:
    """A volume that the supervisor has mounted."""

    identity: str
    mountpoint: str
    reason: str
    """Why it has failed; empty while it serves."""


class Driver:
    """Asks the processes of one node."""

    def __init__(self, config: NodeConfig) -> None:
        self.node = config.node
        self.ram = config.ram.path
        self.share = config.ram.share or 0
        self._configured = config.domain
        self._has_coordinator = config.coordinator is not None
        self._worker = f"unix:{config.socket}"
        self._supervisor = Supervisor(f"{config.socket}.supervisor")

    async def mount(self, place: Place, pod: Pod, path: str, *, read_only: bool) -> None:
        """Mounts a volume with the files that it had. Raises what the worker raises, StatedError."""
        request = pb.MountRequest(
            identity=str(place.identity),
            mountpoint=path,
            run=place.run,
            owner_uid=pod.uid,
            user=str(pod),
            topology=place.topology,
            world_size=place.ranks,
            restore=place.restore if place.ranks else "",
            read_only=read_only,
            step_pattern=place.step_pattern,
        )
        doing = "waiting for the replication worker"

        async def attempt() -> None:
            nonlocal doing
            async with Client(self._worker, NodeStub, None) as client:
                done = False
                async for step in client.stream("Mount", request, Deadline.PUBLISH):
                    doing, done = _describe(step) or doing, step.done
                if not done:
                    raise TierUnavailable(f"the replication worker ended while it was {doing}")

        with trio.move_on_after(Deadline.PUBLISH):
            return await _until_there(attempt, Deadline.SUPERVISOR_CONNECT)
        raise ran_out(
            f"volume {place.identity} was not mounted within {Deadline.PUBLISH:g} s: the driver was still {doing}; "
            "it is tried again, and what was fetched so far is not fetched again"
        )

    async def detach(self, path: str) -> bool:
        """Ends the mount at ``path``, whatever hangs; whether nobody uses it any more. Raises TierUnavailable."""

        async def attempt() -> bool:
            return await self._supervisor.detach(path)

        return await _until_there(attempt, Deadline.DETACH_TRY)

    async def find(self, path: str) -> Mounted | None:
        """What the supervisor has at ``path``. Raises TierUnavailable."""
        for mount in await _until_there(self._supervisor.mounts, Deadline.DETACH_TRY):
            if mount["mountpoint"] == path:
                return Mounted(str(mount["identity"]), path, str(mount["reason"]))
        return None

    async def all(self) -> list[Mounted]:
        """Everything that the supervisor has mounted. Raises TierUnavailable."""
        found = await self._supervisor.mounts()
        return [Mounted(str(one["identity"]), str(one["mountpoint"]), str(one["reason"])) for one in found]

    async def why_not_ready(self) -> str:
        """Why no volume can be mounted now; empty when both processes answer."""
        with trio.move_on_after(Deadline.PROBE):
            try:
                await self._supervisor.mounts()
                async with Client(self._worker, NodeStub, None) as client:
                    await client.call("Alive", pb.Empty(), Deadline.PROBE)
            except (FuseTierError, OSError) as error:
                return str(error)
            return ""
        return f"the driver's processes did not answer within {Deadline.PROBE:g} s"

    async def domain(self) -> Domain:
        """What the node fails together with: by its labels, which the worker hears of, else as configured.

        Waits for that for a while: kubelet takes the topology that it is told first, and asks no more.
        """
        configured = Domain(self._configured.zone, self._configured.pool, self._configured.host)
        reason = "the coordinator was not heard"
        with trio.move_on_after(Deadline.TOPOLOGY):
            while self._has_coordinator:
                try:
                    async with Client(self._worker, NodeStub, None) as client:
                        said: pb.AliveReply = await client.call("Alive", pb.Empty(), Deadline.PROBE)
                except FuseTierError as error:
                    reason = str(error)
                else:
                    if said.HasField("domain"):
                        return domain_from_wire(said.domain).or_else(configured)
                await trio.sleep(_AGAIN_SECONDS)
            return configured
        log.warning("topology.unknown", node=self.node, reason=reason)
        return configured


def ours_at(path: str) -> Mount | None:
    """The volume that is mounted at ``path``, alive or dead. Reads the mount table, which never hangs."""
    found = mount_at(path)
    return found if found is not None and found.is_ours else None


def _describe(step: pb.Step) -> str:
    if not step.what or not step.total_bytes:
        return step.what
    return f"{step.what} ({step.moved_bytes / step.total_bytes:.0%})"


async def _until_there(attempt: Callable[[], Awaitable[T]], patience_seconds: float) -> T:
    """Asks again while nobody answers. Raises the last TierUnavailable when nobody did for so long."""
    give_up = trio.current_time() + patience_seconds
    while True:
        try:
            return await attempt()
        except TierUnavailable:
            if trio.current_time() > give_up:
                raise
            await trio.sleep(_AGAIN_SECONDS)
