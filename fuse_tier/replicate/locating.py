"""Where a volume's snapshots are, as one node finds out: from the coordinator, or else from the peers themselves."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity
from fuse_tier.members import Location
from fuse_tier.replicate.correspondence import Correspondence
from fuse_tier.replicate.own import OwnNode
from fuse_tier.replicate.roster import Roster, ask_holders
from fuse_tier.replicate.terms import Terms
from fuse_tier.replicate.unheard import Unheard
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import PeerStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import location_from_wire

log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 0.2


class Locating:
    """Of a node with a coordinator."""

    def __init__(
        self,
        client: Client,
        address: str,
        own: OwnNode,
        roster: Roster,
        terms: Terms,
        letters: Correspondence,
        unheard: Unheard,
    ) -> None:
        """``client`` is of the coordinator, which is at ``address``."""
        self._client = client
        self._address = address
        self._own = own
        self._roster = roster
        self._terms = terms
        self._letters = letters
        self._unheard = unheard

    async def locate(self, identity: Identity) -> Location:
        """See Membership. Without the coordinator, the peers known from before are asked.

        Nobody can tell then what those have that don't answer, or were gone before, or are not known because the
        coordinator was never heard of: they are called silent.
        One that has just started is asked again until it must have heard of all: else what is older would pass for
        the newest. Who was known before and has not been heard of by then is silent for a while.
        """
        patient_until = trio.current_time() + self._letters.lease_seconds + 1
        while True:
            try:
                request = pb.LocateRequest(identity=str(identity))
                reply = await self._client.call("Locate", request, Deadline.CONTROL_CALL)
                await self._terms.obey(reply.term, self._address)
                location = location_from_wire(reply)
            except FuseTierError as error:
                log.warning("membership.asking_peers_instead", identity=str(identity), reason=str(error))
                return await self._ask_peers(identity, str(error))
            if location.is_settled or trio.current_time() > patient_until:
                holders = tuple(holder for holder in location.holders if holder[0].node != self._own.node)
                unheard = self._unheard.names(trio.current_time())
                silent = tuple(f"node {node} (the coordinator has started since it was heard of)" for node in unheard)
                return replace(location, holders=holders, silent=silent)
            await trio.sleep(_AGAIN_SECONDS)

    async def _ask_peers(self, identity: Identity, reason: str) -> Location:
        async with AsyncExitStack() as stack:
            live = [member for member in self._roster.members if member.alive]
            clients = {
                member: await stack.enter_async_context(
                    Client(member.control, PeerStub, self._own.tls, member.node, cluster=self._own.cluster)
                )
                for member in live
            }
            asked = await ask_holders(live, identity, clients.__getitem__)
        silent = [f"node {member.node} ({why})" for member, why in asked.silent.items()]
        silent += [f"node {member.node} (gone before)" for member in self._roster.members if not member.alive]
        if silent or not self._letters.life:
            silent.append(f"the coordinator at {self._address} ({reason})")
        return Location(asked.holders, silent=tuple(silent))
