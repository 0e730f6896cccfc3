"""Who reads which content out of the bucket, when several nodes need the same: the first, and the others from it.

For each content one of the live nodes keeps the list of those that asked for it lately (``sharing.py``); which one
follows from who is alive, so that no node keeps them all. Nothing depends on it but the bucket's load: who cannot
ask, or waits in vain, reads for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.members import Member
from fuse_tier.replicate.election import rank
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.sharing import Sharing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.bulk.format import encode_blob
from fuse_tier.wire.control_pb2_grpc import StewardStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.tls import TlsFiles

log = structlog.get_logger(__name__)

BLOBS_A_CALL: Final = 20_000
_GROUPS: Final = 16  # of contents that one node keeps the list of: so many nodes are asked at most


class Readers:
    """``sharing`` is the list that this node keeps for all."""

    def __init__(self, place: str, membership: Membership, sharing: Sharing, tls: TlsFiles | None) -> None:
        self._place = place
        self._membership = membership
        self._sharing = sharing
        self._tls = tls

    def give_turns(self, blobs: Sequence[Blob], asker: str) -> dict[Blob, str]:
        """From whom the asker should take what others are reading; the rest it is to read itself."""
        alive = {self._membership.own().node, *self._alive()}
        return self._sharing.refer(blobs, asker, alive.__contains__, trio.current_time())

    async def refer(self, blobs: Sequence[Blob]) -> dict[Blob, str]:
        """Which node to take content from, rather than from the bucket, and to wait for. Never fails."""
        own, alive = self._membership.own().node, self._alive()
        keepers: dict[str, list[Blob]] = {}
        first = [rank(f"{self._place} {group}", {own, *alive})[0] for group in range(_GROUPS)]
        for blob in blobs:
            keepers.setdefault(first[blob.digest[0] % _GROUPS], []).append(blob)
        referred = self.give_turns(keepers.pop(own, []), own)
        async with trio.open_nursery() as nursery:
            for keeper, part in keepers.items():
                nursery.start_soon(self._ask, alive[keeper], own, part, referred)
        return referred

    async def _ask(self, keeper: Member, own: str, blobs: Sequence[Blob], referred: dict[Blob, str]) -> None:
        try:
            async with Client(keeper.control, StewardStub, self._tls, keeper.node) as client:
                for start in range(0, len(blobs), BLOBS_A_CALL):
                    part = blobs[start : start + BLOBS_A_CALL]
                    request = pb.ReadersRequest(blobs=map(encode_blob, part), node=own, place=self._place)
                    reply: pb.ReferReply = await client.call("Readers", request, Deadline.CONTROL_CALL)
                    referred |= {part[one.index]: one.node for one in reply.referrals if one.index < len(part)}
        except FuseTierError as error:  # then we read it ourselves
            log.info("bucket.readers_not_asked", member=keeper.node, reason=str(error))

    def _alive(self) -> dict[str, Member]:
        return {member.node: member for member in self._membership.members() if member.alive}
