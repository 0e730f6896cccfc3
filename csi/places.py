"""Which volume a pod gets: the coordinator's word, else the attributes in its manifest, else a name after the pod.

``choose`` decides and asks nobody; ``Ranks`` asks. A coordinator that serves no ranks has nothing to say, which is no
failure; one that says *pending* makes the pod wait.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import grpc
import structlog

from csi import ranks_pb2 as pb
from csi.context import Pod, Wishes
from csi.ranks_pb2_grpc import RanksServiceStub
from csi.refusals import not_now, unavailable
from fuse_tier.config import NodeConfig
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.tls import TlsFiles

log = structlog.get_logger(__name__)

_NO_RANK: Final = -1
_MASTER_PORT: Final = 8476  # what JAX's coordinator listens on


@dataclass(frozen=True, slots=True)
class Rank:
    """A pod's place in its job, as the coordinator assigned it."""

    rank: int
    jobset: str
    """Namespace and name."""
    shape: str
    """Slices and workers, such as 3x512; may be empty."""
    first_ip: str
    """Of the pod with rank 0; may be empty."""

    @property
    def ranks(self) -> int:
        """How many the job has; 0 where the shape tells nothing."""
        slices, times, workers = self.shape.partition("x")
        return int(slices) * int(workers) if times and slices.isdecimal() and workers.isdecimal() else 0

    @property
    def jax_init_info(self) -> str:
        """What a JAX process reads its place from."""
        return f"{self.rank}\n{self.first_ip}:{_MASTER_PORT}\n"


@dataclass(frozen=True, slots=True)
class Place:
    """A volume, and what its snapshots are known by."""

    identity: Identity
    run: str
    """Empty for the workload's name."""
    topology: str = ""
    rank: Rank | None = None
    ranks: int = 0
    """How many the job has; 0 where that is not known."""
    restore: str = ""
    """Whether all of them go on from one step (``consistent``), or each from its newest (``latest``)."""
    step_pattern: str = ""
    """How the job names its steps; empty: as frameworks do."""


def choose(pod: Pod, wishes: Wishes, rank: Rank | None) -> Place:
    """The volume of a pod. Raises ConfigError for names that are none."""
    return replace(_choose(pod, wishes, rank), step_pattern=wishes.step_pattern)


def _choose(pod: Pod, wishes: Wishes, rank: Rank | None) -> Place:
    run = pod.uid if wishes.restore == "none" else wishes.run
    restore = "latest" if wishes.restore == "none" else wishes.restore
    if rank is not None:
        namespace, _, name = rank.jobset.partition("/")
        identity = Identity(namespace, wishes.workload or name, str(rank.rank))
        return Place(identity, run, rank.shape, rank, rank.ranks, restore)
    ranks = int(wishes.ranks or 0)
    restore = restore if ranks or restore == "latest" else ""
    if wishes.workload:
        identity = Identity(pod.namespace, wishes.workload, wishes.replica or pod.name)
        return Place(identity, run, ranks=ranks, restore=restore)
    return Place(Identity(pod.namespace, pod.name, "0"), run, ranks=ranks, restore=restore)


class Assigner(Protocol):
    """Who knows a pod's place in its job."""

    async def rank_of(self, pod: Pod) -> Rank | None:
        """None when nobody has anything to say about it. Raises StatedError when it is to wait."""
        ...


class NoRanks:
    """A node without a coordinator."""

    async def rank_of(self, pod: Pod) -> Rank | None:
        """Nothing."""
        return None


class Ranks:
    """Asks the coordinator, once for each publish."""

    def __init__(self, config: NodeConfig) -> None:
        self._address = str(config.coordinator)
        self._node = config.node
        self._tls = TlsFiles(config.tls.ca, config.tls.cert, config.tls.key) if config.tls else None
        self._name = config.tls.coordinator if config.tls else None

    async def rank_of(self, pod: Pod) -> Rank | None:
        """Its rank, if the coordinator knows the pod's job."""
        request = pb.UpdateRequest(state=pb.PENDING, node=self._node, pod_uid=pod.uid, rank=_NO_RANK)
        request.hold_seconds = Deadline.RANKS
        try:
            async with Client(self._address, RanksServiceStub, self._tls, self._name) as client:
                said = await client.call("Update", request, Deadline.RANKS_CALL)
        except TierUnavailable as error:
            raise unavailable(
                f"{pod} waits for its place in its job; the coordinator at {self._address} cannot be asked: {error}; "
                "see the pods of its deployment; it is asked again"
            ) from error
        except FuseTierError as error:
            if _serves_no_ranks(error):
                return None
            raise
        return _read(pod, said)


def _serves_no_ranks(error: FuseTierError) -> bool:
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and _status_of(cause) in (
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
    )


def _status_of(error: Any) -> grpc.StatusCode:
    status: grpc.StatusCode = error.code()  # every RpcError of a call has one, which its type does not say
    return status


def _read(pod: Pod, said: pb.UpdateResponse) -> Rank | None:
    if not said.jobset:
        return None
    if said.new_state != pb.ASSIGNED:
        raise not_now(
            f"{pod} waits for the ranks of {said.jobset} ({said.jobset_shape or 'shape unknown'}): "
            f"{said.waits_for or 'not all of its pods have nodes'}; ranks are assigned when all have asked for them"
        )
    return Rank(said.rank, said.jobset, said.jobset_shape, said.controller_ip)
