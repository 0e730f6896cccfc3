"""The other nodes as last heard of, and who is told when that changes; and asking them what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import structlog
import trio

from fuse_tier import epochs
from fuse_tier.checkpoints import Job
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, FuseTierError
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, JobAddress, Member
from fuse_tier.replicate.own import OwnNode
from fuse_tier.restarts import Mark, Question, Resumption, Verdict
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import numbers_by_identity

log = structlog.get_logger(__name__)

Holders = tuple[tuple[Member, tuple[int, ...]], ...]


class Roster:
    """The members but for the own node, by name. ``version`` grows when more changes than their free room."""

    def __init__(self) -> None:
        self.members: tuple[Member, ...] = ()
        self.version = 0
        self._changed = trio.Event()

    def update(self, members: Iterable[Member]) -> None:
        """Takes over what was heard."""
        previous, self.members = self.members, tuple(sorted(members, key=lambda member: member.node))
        if [replace(member, free_bytes=0) for member in previous] != [
            replace(member, free_bytes=0) for member in self.members
        ]:
            self.tell()

    def tell(self) -> None:
        """Something else has changed that those want to know who watch the members."""
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self, version: int) -> int:
        """Returns the version as soon as it is another one than ``version``."""
        while self.version == version:
            await self._changed.wait()
        return self.version


class RosterMembership:
    """What both ways to be a member share: this node with what it has claimed, and the others as last heard of."""

    def __init__(self, own: OwnNode) -> None:
        self._own = own
        self._roster = Roster()
        self._claimed: set[Identity] = set()
        self._epochs: dict[Identity, int] = {}  # of what is this node's
        self._resumed: dict[Identity, Resumption] = {}

    @property
    def version(self) -> int:
        """See Membership."""
        return self._roster.version

    def own(self) -> Member:
        """See Membership."""
        return self._own.member(self._claimed)

    def heard_domain(self) -> Domain | None:
        """See Membership. There is nobody to say it."""
        return Domain()

    def mounted(self) -> frozenset[Identity]:
        """See Membership."""
        return self.own().mounted

    def epoch(self, identity: Identity) -> int:
        """See Membership."""
        return self._epochs.get(identity, 0)

    def is_doubtful(self, identity: Identity) -> bool:
        """See Membership."""
        return False

    def members(self) -> tuple[Member, ...]:
        """See Membership."""
        return self._roster.members

    async def restart(self, question: Question) -> Verdict:
        """See Membership."""
        await trio.lowlevel.checkpoint()
        raise ConfigError(
            "`restore: consistent` needs a coordinator, which knows what all ranks have: set `coordinator` in "
            "node.yaml, or say `restore: latest`"
        )

    async def job_address(self, job: str) -> JobAddress | None:
        """See Membership."""
        return None

    async def checkpoints(self, job: Job) -> tuple[Standing, ...]:
        """See Membership."""
        await trio.lowlevel.checkpoint()
        raise ConfigError(
            f"which checkpoints of {job} are complete only a coordinator knows: set `coordinator` in node.yaml; "
            "`fuse-tier ls` shows what there is of each volume"
        )

    async def join(self, identity: Identity, resumption: Resumption) -> None:
        """See Membership. Nothing to do."""
        await trio.lowlevel.checkpoint()

    @property
    def agrees_on_steps(self) -> bool:
        """See Membership."""
        return False

    def needed(self, identity: Identity) -> frozenset[int] | None:
        """See Membership. Without a coordinator nobody knows, and each node keeps what it is told to keep."""
        return frozenset()

    def clock(self) -> int:
        """See Membership."""
        return max(epochs.from_the_time(), *self._epochs.values(), 0)

    def marks(self) -> frozenset[Mark]:
        """See Membership."""
        return frozenset()

    async def wait_changed(self, version: int) -> int:
        """See Membership."""
        return await self._roster.wait_changed(version)


@dataclass(frozen=True, slots=True)
class Asked:
    """What members said that they list, the most recent first, and why the others said nothing."""

    holders: Holders
    silent: Mapping[Member, str]


async def ask_holders(members: Iterable[Member], identity: Identity, client_of: Callable[[Member], Client]) -> Asked:
    """What live members list of a volume, asked at once; of those that don't answer, the log tells."""
    holders: dict[Member, tuple[int, ...]] = {}
    silent: dict[Member, str] = {}

    async def ask(member: Member) -> None:
        try:
            reply = await client_of(member).call(
                "Snapshots", pb.SnapshotsRequest(identity=str(identity)), Deadline.CONTROL_CALL
            )
            numbers = numbers_by_identity(reply.ids).get(identity)
        except FuseTierError as error:
            log.warning("membership.peer_passed_over", member=member.node, identity=str(identity), reason=str(error))
            silent[member] = str(error)
            return
        if numbers:
            holders[member] = numbers

    async with trio.open_nursery() as nursery:
        for member in members:
            if member.alive:
                nursery.start_soon(ask, member)
    return Asked(tuple(sorted(holders.items(), key=lambda holder: (-holder[1][-1], holder[0].node))), silent)
