"""What a node does for its peers: keeps copies in its RAM tier, and hands them out.

Peers are believed nothing: every field is checked here, before the tier sees it, and content is hashed by the
tier. Decides nothing about what should be where; bytes of content travel in sessions over bulk streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final

import trio

from fuse_tier import __version__
from fuse_tier.blobs import Blob
from fuse_tier.errors import (
    ConfigError,
    FuseTierError,
    InvalidRequest,
    MalformedManifest,
    NotAuthorized,
    SnapshotConflict,
    TierFull,
    TierRefused,
)
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.manifest import Manifest, decode, encode
from fuse_tier.members import Location, Member
from fuse_tier.replicate.rights import Rights, nobody, nowhere
from fuse_tier.replicate.sharing import Sharing
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.bulk.format import MAX_ASKED_BLOBS, MAX_SESSION_BLOBS, decode_blob, encode_blob
from fuse_tier.wire.bulk.sessions import Direction, Session, Sessions
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.members import MINOR, PROTOCOL, domain_to_wire, parse_identity
from fuse_tier.wire.partials import partials_from_wire, partials_to_wire
from fuse_tier.wire.rejections import Rejections

SMALLEST_GRACE_SECONDS = 600.0
"""Content that peers have pushed, and will name in a manifest soon, is never collected sooner at a peer's wish."""

CARRIERS: Final = frozenset({"/fuse_tier.v1.Peer/Commit"})
"""Calls that bring manifests."""

_RESERVE_BYTES = 16 << 20  # of the RAM tier, for manifests and what a job's markers need
_RESERVE_PART = 50  # or this part of a small tier


def _not_known(node: str) -> bool:
    """For nodes that know of nobody else."""
    return False


class PeerService:
    """The gRPC service ``Peer`` of ``control.proto``, for ``wire/grpc.py`` to serve.

    ``own`` gives what the node says of itself at the moment; ``secure`` says whether it has certificates, and then
    ``encrypt`` whether content has to be encrypted even when the peer would do without. ``make_room`` gives up what
    may go for so many bytes of a peer's copy, and tells how many are free then. ``mounted_on`` and ``locate`` are as
    for ``Rights``, ``is_alive`` tells whether a node is.
    """

    def __init__(
        self,
        ram: RamTier,
        sessions: Sessions,
        own: Callable[[], Member],
        cluster: str,
        *,
        secure: bool,
        encrypt: bool,
        mounted_on: Callable[[Identity], Collection[str]] = nobody,
        locate: Callable[[Identity], Awaitable[Location]] = nowhere,
        is_alive: Callable[[str], bool] = _not_known,
        make_room: Callable[[int], Awaitable[int]] | None = None,
        smallest_grace_seconds: float = SMALLEST_GRACE_SECONDS,
    ) -> None:
        self._ram = ram
        self._sessions = sessions
        self._own = own
        self._cluster = cluster
        self._secure = secure
        self._encrypt = encrypt
        self._is_alive = is_alive
        self._sharing = Sharing()
        self._make_room = make_room
        self._smallest_grace_seconds = smallest_grace_seconds
        self._parsing = trio.CapacityLimiter(2)
        self._rejections = Rejections("peer.refused")
        self._rights = Rights(own, ram, self._rejections, mounted_on, locate)

    async def Hello(self, request: pb.HelloRequest, caller: Caller) -> pb.HelloReply:  # noqa: N802 - gRPC's name
        """Who we are. Refuses another protocol and another cluster; two of one name the caller has to notice."""
        own = self._own()
        if not is_name(request.node) or not is_name(request.instance):
            raise InvalidRequest(f"{request.node!r} with instance {request.instance!r} is no valid name of a node")
        refused = self._why_not(request, caller, own.node)
        if refused is not None:
            kind, error = refused
            self._rejections.note(kind, caller.address, str(error))
            raise error
        return pb.HelloReply(
            protocol=PROTOCOL,
            minor=MINOR,
            cluster=self._cluster,
            node=own.node,
            instance=own.instance,
            version=__version__,
            bulk=own.bulk,
            mounted=sorted(map(str, own.mounted)),
            capacity_bytes=own.capacity_bytes,
            free_bytes=max(0, own.free_bytes),
            domain=domain_to_wire(own.domain),
        )

    def _why_not(self, request: pb.HelloRequest, caller: Caller, own: str) -> tuple[str, FuseTierError] | None:
        if caller.node is not None and caller.node != request.node:
            return "certificate", NotAuthorized(
                f"the certificate is of node {caller.node!r}, and it says that it is {request.node!r}: give each "
                "node its own certificate (tls in node.yaml)"
            )
        if request.protocol != PROTOCOL:
            return "protocol", TierRefused(
                f"node {own} runs fuse-tier {__version__} with protocol {PROTOCOL}, and {request.node} speaks "
                f"protocol {request.protocol}: run versions of one major protocol on all nodes"
            )
        if request.cluster != self._cluster:
            return "cluster", TierRefused(
                f"node {own} belongs to cluster {self._cluster!r}, and {request.node} to {request.cluster!r}: "
                "correct the cluster or the peers' addresses in node.yaml"
            )
        return None

    async def Missing(self, request: pb.BlobList, caller: Caller) -> pb.BlobList:  # noqa: N802
        """Which of these are not here yet."""
        blobs = decode_blobs(request.blobs, MAX_ASKED_BLOBS)
        return pb.BlobList(blobs=map(encode_blob, await self._ram.missing(blobs, anew=True)))

    async def OpenPush(self, request: pb.PushRequest, caller: Caller) -> pb.Session:  # noqa: N802
        """A session in which the caller sends these blobs. Refuses what there is no room for.

        With ``may_leave_out`` only those that are neither here nor being sent by somebody.
        """
        blobs = decode_blobs(request.blobs, MAX_SESSION_BLOBS)
        wanted = frozenset(blobs)
        if request.may_leave_out:
            missing = await self._ram.missing(blobs)
            wanted = frozenset(blob for blob in missing if not self._sessions.is_coming(blob))
        left_out = [index for index, blob in enumerate(blobs) if blob not in wanted]
        session = pb.Session(left_out=left_out, encrypted=self._encrypts(request))
        if wanted:
            await self._check_room(wanted)
            sent = tuple(blob for blob in blobs if blob in wanted)
            begun = {blob: kept for blob in sent if (kept := self._ram.partial(blob)) is not None}
            session.MergeFrom(self._grant(Session(caller.node, Direction.PUSH, sent, self._encrypts(request), begun)))
            session.begun.extend(partials_to_wire(blobs, begun.get))
        return session

    async def _check_room(self, blobs: frozenset[Blob]) -> None:
        """Raises TierFull. Beginnings that were kept count as room, and those of other blobs give way first."""
        needed = sum(blob.size for blob in blobs if self._ram.partial(blob) is None)
        capacity = self._ram.capacity_bytes()
        kept_free = min(_RESERVE_BYTES, capacity // _RESERVE_PART)
        if needed > self._ram.free_bytes() - kept_free:
            await trio.to_thread.run_sync(self._ram.give_up_partials, blobs)
        free = self._ram.free_bytes() - kept_free
        if free < needed <= capacity and self._make_room is not None:
            free = await self._make_room(needed + kept_free) - kept_free
        if needed > free:
            raise TierFull(
                f"the {self._ram.place} has room for {max(0, free)} bytes, and {needed} are offered: give it more "
                "(ram.size), or keep fewer snapshots (keep.ram)"
            )

    async def OpenPull(self, request: pb.PullRequest, caller: Caller) -> pb.Session:  # noqa: N802
        """A session in which the caller receives these blobs, or is told for each that it is not here."""
        blobs = decode_blobs(request.blobs, MAX_SESSION_BLOBS)
        begun = partials_from_wire(blobs, request.begun)
        return self._grant(Session(caller.node, Direction.PULL, blobs, self._encrypts(request), begun))

    async def Refer(self, request: pb.ReferRequest, caller: Caller) -> pb.ReferReply:  # noqa: N802
        """Whom the caller should ask instead for what it is about to pull: those that have it from here."""
        blobs = decode_blobs(request.blobs, MAX_SESSION_BLOBS)
        if not is_name(request.node) or caller.node not in (None, request.node):
            raise InvalidRequest(f"{request.node!r} is not the name of the node that calls")
        absent = await self._ram.absent(blobs)
        kept = [blob for blob in blobs if blob not in absent]
        referred = self._sharing.refer(kept, request.node, self._is_alive, trio.current_time())
        indices = {blob: index for index, blob in enumerate(blobs)}
        return pb.ReferReply(
            referrals=[pb.Referral(index=indices[blob], node=node) for blob, node in referred.items()]
        )

    async def Commit(self, request: pb.ManifestText, caller: Caller) -> pb.Empty:  # noqa: N802
        """Lists a snapshot whose content is all here, for a node that may add it, of an epoch that still counts."""
        manifest = await _parse_manifest(request.text, self._parsing)
        await self._rights.check_commit(manifest.id, caller)
        listed = await self._ram.snapshots(manifest.id.identity)
        if listed and listed[-1].epoch > manifest.id.epoch:
            raise SnapshotConflict(
                f"{manifest.id} is of epoch {manifest.id.epoch} and is refused: the {self._ram.place} has "
                f"{listed[-1]}, of epoch {listed[-1].epoch}, so another node has owned the volume since",
                listed[-1].number,
            )
        await self._ram.commit(manifest)
        return pb.Empty()

    async def Snapshots(self, request: pb.SnapshotsRequest, caller: Caller) -> pb.SnapshotsReply:  # noqa: N802
        """Everything listed, of one volume or of all."""
        identity = parse_identity(request.identity) if request.identity else None
        return pb.SnapshotsReply(ids=map(str, await self._ram.snapshots(identity)))

    async def Manifest(self, request: pb.SnapshotRequest, caller: Caller) -> pb.ManifestText:  # noqa: N802
        """The text of a listed manifest."""
        manifest = await self._ram.manifest(_parse_snapshot(request.id))
        return pb.ManifestText(text=await trio.to_thread.run_sync(encode, manifest, limiter=self._parsing))

    async def Drop(self, request: pb.SnapshotRequest, caller: Caller) -> pb.Empty:  # noqa: N802
        """Takes a snapshot from the list: for the node that has its volume mounted, and for no other."""
        snapshot = _parse_snapshot(request.id)
        self._rights.check_drop(snapshot, caller)
        await self._ram.drop(snapshot)
        return pb.Empty()

    async def Verify(self, request: pb.VerifyRequest, caller: Caller) -> pb.VerifyReply:  # noqa: N802
        """Reads and hashes what is listed here, of one volume or of all."""
        report = await self._ram.verify(parse_identity(request.identity) if request.identity else None)
        return pb.VerifyReply(
            snapshots=report.snapshots, blobs=report.blobs, bytes=report.bytes, damaged=report.damaged
        )

    async def Collect(self, request: pb.CollectRequest, caller: Caller) -> pb.CollectReply:  # noqa: N802
        """Removes blobs that no manifest names, but none that might still be named soon."""
        grace = max(self._smallest_grace_seconds, request.grace_seconds)  # in this order, NaN gives way as well
        return pb.CollectReply(freed_bytes=await self._ram.collect(grace))

    def _encrypts(self, request: pb.PushRequest | pb.PullRequest) -> bool:
        return self._secure and (self._encrypt or request.encrypt)

    def _grant(self, session: Session) -> pb.Session:
        return pb.Session(token=self._sessions.grant(session), encrypted=session.encrypted)


async def _parse_manifest(text: bytes, limiter: trio.CapacityLimiter) -> Manifest:
    found = await trio.to_thread.run_sync(_decoded, text, limiter=limiter)
    if isinstance(found, MalformedManifest):
        raise InvalidRequest(f"the manifest that was to be committed is refused: {found}")
    return found


def _decoded(text: bytes) -> Manifest | MalformedManifest:
    """An error that is raised through a thread would keep the text until cycles are looked for."""
    try:
        return decode(text)
    except MalformedManifest as error:
        return error.with_traceback(None)


def decode_blobs(encoded: Collection[bytes], most: int) -> tuple[Blob, ...]:
    """Blobs from a peer: each once, at most so many. Raises InvalidRequest."""
    if len(encoded) > most:
        raise InvalidRequest(f"{len(encoded)} blobs in one call are more than the {most} that are accepted")
    blobs = tuple(map(decode_blob, encoded))
    if len(set(blobs)) != len(blobs):
        raise InvalidRequest("a blob stands in the list twice")
    return blobs


def _parse_snapshot(text: str) -> SnapshotId:
    try:
        return SnapshotId.parse(text)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from None
