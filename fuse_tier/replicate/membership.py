"""Who else is there, what they hold, and who has which identity mounted: the worker's one way to know.

Two implementations of one interface: through a coordinator (``by_coordinator.py``), or by asking the
configured peers (``by_peers.py``), which is weaker and needs nothing else. A node without either is alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from fuse_tier.checkpoints import Job
from fuse_tier.config import NodeConfig
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, JobAddress, LocalFacts, Location, Member
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.by_coordinator import CoordinatorMembership
from fuse_tier.replicate.by_peers import PeerMembership
from fuse_tier.replicate.own import OwnNode
from fuse_tier.restarts import Mark, Question, Resumption, Verdict
from fuse_tier.standing import Standing
from fuse_tier.wire.tls import TlsFiles


class Membership(Protocol):
    """Kept up to date by ``run``; everything else may be called from any task while that runs."""

    @property
    def version(self) -> int:
        """Grows when a member comes, goes, starts again, or mounts something; for ``wait_changed``."""
        ...

    def own(self) -> Member:
        """This node, as others are told of it."""
        ...

    def heard_domain(self) -> Domain | None:
        """What others say that this node fails together with; None while they were not heard."""
        ...

    def mounted(self) -> frozenset[Identity]:
        """What others have to be told is mounted here: what is, and what was claimed for it."""
        ...

    def members(self) -> tuple[Member, ...]:
        """The other nodes, by name, those that are gone included; as last heard, even during an outage."""
        ...

    async def wait_changed(self, version: int) -> int:
        """Returns the version as soon as it is another one than ``version``."""
        ...

    def report_soon(self) -> None:
        """Others shall learn of changed facts now rather than at the next turn. Never waits; calls are merged."""
        ...

    def epoch(self, identity: Identity) -> int:
        """Under which epoch (``epochs.py``) an identity is this node's, as last heard; 0: not known."""
        ...

    def is_doubtful(self, identity: Identity) -> bool:
        """Whether it is not certain at present that an identity that is mounted here is still this node's."""
        ...

    async def claim(self, identity: Identity, above: int = 0) -> int:
        """Before a mount: sees that nobody else has the identity mounted, and makes it this node's.

        Gives the epoch of that, which is above ``above`` and above that of every owner before. Waits for some
        seconds when a node that had it seems gone, or the coordinator is starting. Raises IdentityBusy naming
        who has it, TierUnavailable when nobody can tell, TierRefused. Claiming what this node has already is
        no error.
        """
        ...

    async def confirm(self, identity: Identity, above: int = 0) -> bool:
        """Whether an identity that is mounted here is still this node's; False once another one's work counts.

        A node that was counted out for a while may have lost it. If it has not, ``epoch`` may be another afterwards,
        and is above ``above``. Raises TierUnavailable when nobody can tell now.
        """
        ...

    async def release(self, identity: Identity) -> None:
        """After an unmount, or when nothing came of a claim: never fails, and is heard later if not now."""
        ...

    async def leave(self) -> None:
        """At this node's orderly end: others need not wait for its lease to end. Never fails.

        Does nothing while anything is mounted here. After it only ``run`` remains to be cancelled.
        """
        ...

    async def locate(self, identity: Identity) -> Location:
        """Which other nodes list which snapshots, and what nodes have put into the bucket.

        As far as can be known now: it never fails, and may be empty; it names who could not be asked. Ask the
        holders and the bucket itself before relying on it.
        """
        ...

    async def restart(self, question: Question) -> Verdict:
        """From which step a volume of this node goes on (``restarts.py``): all ranks of its job from the same.

        Raises TierUnavailable (ask again), what ``choose`` in ``coordinate/choosing.py`` raises, and ConfigError
        without a coordinator.
        """
        ...

    async def join(self, identity: Identity, resumption: Resumption) -> None:
        """Before a volume is mounted that has the files of the step. Raises TierUnavailable: it is chosen again."""
        ...

    async def job_address(self, job: str) -> JobAddress | None:
        """Where a training job's own coordinator is, as some node was told. Raises TierUnavailable."""
        ...

    async def checkpoints(self, job: Job) -> tuple[Standing, ...]:
        """The complete checkpoints of a job, and on which tiers each is. Raises ConfigError without a coordinator."""
        ...

    @property
    def agrees_on_steps(self) -> bool:
        """Whether somebody knows what all ranks of a job have."""
        ...

    def needed(self, identity: Identity) -> frozenset[int] | None:
        """Parts of newest complete checkpoints, which stay in RAM; None while that is not known."""
        ...

    def clock(self) -> int:
        """The epoch of this moment, above all that this node has heard of."""
        ...

    def marks(self) -> frozenset[Mark]:
        """Steps that are not to be restored, as last heard."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reports and listens until cancelled; started after the first attempt, whatever came of it.

        Raises what refuses this node for good before it was ever accepted: another node has its name, its
        cluster is another, its certificate another name. Refusals after that are logged, and tried again.
        """
        ...


def mounted_on(membership: Membership, identity: Identity) -> frozenset[str]:
    """The live other nodes that have a volume mounted."""
    return frozenset(member.node for member in membership.members() if member.alive and identity in member.mounted)


def is_alive(membership: Membership, node: str) -> bool:
    """Whether another node is there."""
    return any(member.node == node and member.alive for member in membership.members())


def build_membership(config: NodeConfig, instance: str, facts: Callable[[], LocalFacts]) -> Membership:
    """The membership that a configuration asks for.

    ``instance`` is random and new at each start of a worker. ``facts`` is called for every report and has to
    be quick.
    """
    domain = config.domain
    own = OwnNode(
        node=config.node,
        instance=instance,
        cluster=config.cluster,
        control=str(config.listen.control),
        bulk=str(config.listen.bulk),
        domain=Domain(domain.zone, domain.pool, domain.host or config.listen.control.host),
        facts=facts,
        tls=TlsFiles(config.tls.ca, config.tls.cert, config.tls.key) if config.tls else None,
    )
    if config.coordinator:
        name = config.tls.coordinator if config.tls else None
        return CoordinatorMembership(own, str(config.coordinator), name, Layout(config.ram.path))
    return PeerMembership(own, tuple((str(peer), Domain(host=peer.host)) for peer in config.peers))
