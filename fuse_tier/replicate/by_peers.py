"""Membership without a coordinator: the configured peers are asked.

Weaker than a coordinator: a peer that doesn't answer counts as gone, so when two nodes that cannot reach each
other mount one identity, neither is refused. Among nodes that can, a claim is announced before anybody is
asked, so that of two at the same moment at most one succeeds, perhaps neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog
import trio

from fuse_tier import epochs, metrics
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, IdentityBusy, NotThatNode, TierRefused
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, Location, Member
from fuse_tier.replicate.own import OwnNode
from fuse_tier.replicate.roster import Asked, RosterMembership, ask_holders
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import PeerStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import PROTOCOL, hello_from_wire

log = structlog.get_logger(__name__)

_ASK_EVERY_SECONDS = 2.0


@dataclass(slots=True)
class _Peer:
    address: str
    domain: Domain
    client: Client  # of ``node`` alone, where that is known
    answered: float  # when it last did, or when this node began to ask, by trio's clock
    member: Member | None = None  # as last heard
    node: str | None = None  # whose certificate it has shown
    trouble: type[FuseTierError] | None = None  # told already


class PeerMembership(RosterMembership):
    """Implements ``Membership``. ``peers`` are control addresses, and what these say of the domains."""

    def __init__(self, own: OwnNode, peers: tuple[tuple[str, Domain], ...]) -> None:
        super().__init__(own)
        self._peers = [
            _Peer(address, domain, self._client(address), trio.current_time()) for address, domain in peers
        ]
        self._asking = trio.Lock()

    def _client(self, address: str, node: str | None = None) -> Client:
        return Client(address, PeerStub, self._own.tls, node, cluster=self._own.cluster)

    def report_soon(self) -> None:
        """See Membership. Nothing to do: peers ask for themselves."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Membership."""
        try:
            await self._ask_all()
            self._refuse_own_name()
            task_status.started()
            while True:
                await trio.sleep(_ASK_EVERY_SECONDS)
                await self._ask_all()
        finally:
            with trio.CancelScope(shield=True):
                for peer in self._peers:
                    await peer.client.aclose()

    async def claim(self, identity: Identity, above: int = 0) -> int:
        """See Membership. The epoch is above those of which this node knows; nobody sees to more."""
        was_claimed = identity in self._claimed
        self._claimed.add(identity)
        granted = False
        try:
            await self._ask_all()
            for member in self._roster.members:
                if member.alive and identity in member.mounted:
                    raise IdentityBusy(
                        f"{identity} is mounted on node {member.node} ({member.control}), or about to be: unmount it "
                        "there, or stop that node, or mount another identity"
                    )
            granted = True
            return self._begin_epoch(identity, above)
        finally:
            if not granted and not was_claimed:
                self._claimed.discard(identity)

    async def confirm(self, identity: Identity, above: int = 0) -> bool:
        """See Membership. Without a coordinator nobody decides between two that have it: both go on."""
        await trio.lowlevel.checkpoint()
        if self.epoch(identity) <= above:
            self._begin_epoch(identity, above)
        return True

    def _begin_epoch(self, identity: Identity, above: int) -> int:
        epoch = max(epochs.from_the_time(), self.epoch(identity), above + 1)
        self._epochs[identity] = epoch
        return epoch

    async def release(self, identity: Identity) -> None:
        """See Membership."""
        self._claimed.discard(identity)
        self._epochs.pop(identity, None)
        await trio.lowlevel.checkpoint()

    async def leave(self) -> None:
        """See Membership. Nothing to do: a node that doesn't answer counts as gone at once."""
        await trio.lowlevel.checkpoint()

    async def locate(self, identity: Identity) -> Location:
        """See Membership. Who is gone for a moment only, or was not given time to answer, is silent.

        So a peer that starts again is not passed over, and one that is dead holds nothing back for long.
        """
        clients = {peer.member: peer.client for peer in self._peers if peer.member is not None}
        asked = await ask_holders(list(clients), identity, clients.__getitem__)
        recent = trio.current_time() - Deadline.RETURN
        silent = [
            f"{'node ' + peer.member.node if peer.member else 'the peer'} at {peer.address}"
            for peer in self._peers
            if peer.answered > recent and not _has_told(peer, asked)
        ]
        return Location(asked.holders, silent=tuple(silent))

    async def _ask_all(self) -> None:
        # One round at a time: no answer is overwritten by an older one.
        async with self._asking, trio.open_nursery() as nursery:
            for peer in self._peers:
                nursery.start_soon(self._ask, peer)
        self._roster.update(
            {
                peer.member.node: peer.member
                for peer in self._peers
                if peer.member is not None and peer.member.node != self._own.node
            }.values()
        )

    async def _ask(self, peer: _Peer) -> None:
        try:
            reply = await self._hello(peer)
            peer.member = hello_from_wire(reply, peer.address, peer.domain)
            peer.answered = trio.current_time()
        except FuseTierError as error:
            if peer.member is not None:
                peer.member = replace(peer.member, alive=False)
            self._tell_trouble(peer, error)
            return
        if peer.trouble is not None:
            log.info("membership.peer_back", member=peer.member.node, address=peer.address)
            peer.trouble = None

    async def _hello(self, peer: _Peer) -> pb.HelloReply:
        """What it says, with certificates over a connection that has shown that it is who it says."""
        request = pb.HelloRequest(
            protocol=PROTOCOL, cluster=self._own.cluster, node=self._own.node, instance=self._own.instance
        )
        try:
            reply: pb.HelloReply = await peer.client.call("Hello", request, Deadline.CONTROL_CALL)
            self._check(reply, peer.address)
            if self._own.tls is not None and peer.node != reply.node:
                await self._call_only(peer, reply.node)
                reply = await peer.client.call("Hello", request, Deadline.CONTROL_CALL)
                self._check(reply, peer.address)
        except NotThatNode:
            await self._call_only(peer, None)  # the next time it is asked again who it is
            raise
        if peer.node not in (None, reply.node):
            raise TierRefused(f"the peer at {peer.address} says that it is {reply.node}, and then {peer.node}")
        return reply

    async def _call_only(self, peer: _Peer, node: str | None) -> None:
        await peer.client.aclose()
        peer.client, peer.node = self._client(peer.address, node), node

    def _check(self, reply: pb.HelloReply, address: str) -> None:
        """Raises TierRefused for one that we cannot work with."""
        if reply.protocol != PROTOCOL:
            raise TierRefused(
                f"the peer at {address} speaks protocol {reply.protocol} (fuse-tier {reply.version}), this node "
                f"{PROTOCOL}: bring both to the same major version"
            )
        if reply.cluster != self._own.cluster:
            raise TierRefused(
                f"the peer at {address} is of cluster {reply.cluster!r}, this node of {self._own.cluster!r}: take it "
                "out of peers, or give both the same cluster, in node.yaml"
            )

    def _refuse_own_name(self) -> None:
        for peer in self._peers:
            if peer.member is not None and peer.member.node == self._own.node:
                raise TierRefused(
                    f"two nodes are called {self._own.node!r}: one at {peer.address}, and this one at "
                    f"{self._own.control}. Give one of them another name in its node.yaml"
                )

    def _tell_trouble(self, peer: _Peer, error: FuseTierError) -> None:
        """Logs an outage or a refusal once."""
        if peer.trouble is type(error):
            return
        peer.trouble = type(error)
        metrics.error("peer")
        name = peer.member.node if peer.member else ""
        log.warning("membership.peer_unavailable", member=name, address=peer.address, reason=str(error))


def _has_told(peer: _Peer, asked: Asked) -> bool:
    return peer.member is not None and peer.member.alive and peer.member not in asked.silent
