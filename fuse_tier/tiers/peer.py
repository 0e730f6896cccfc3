"""A peer's RAM as a tier: control calls for everything but content, which goes over bulk streams.

The first call says hello: a peer of another cluster or major version, or one that is not who it should be, is
refused before anything is asked of it, and so it is again after it could not be reached; with certificates nothing is
said to any but the node that is meant. Content goes in
sessions (peer_sessions.py); what another node is sending to the peer already is not sent a second time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import structlog
import trio

from fuse_tier.blobs import Blob, Partial, Progress, ResumingSink, Sink, Source
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import (
    ConfigError,
    DeadlineExceeded,
    FuseTierError,
    InvalidRequest,
    MalformedManifest,
    TierError,
    TierFull,
    TierRefused,
    TierUnavailable,
)
from fuse_tier.identity import Identity, SnapshotId, is_name
from fuse_tier.manifest import Manifest, decode, encode
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from fuse_tier.tiers.peer_hello import Introduction as Introduction
from fuse_tier.tiers.peer_hello import why_refused
from fuse_tier.tiers.peer_sessions import Lanes, Patience, Transfer, largest_first, run_sessions
from fuse_tier.verified import VerifyReport
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.bulk.client import Grant, pull, push
from fuse_tier.wire.bulk.format import MAX_ASKED_BLOBS, decode_blob, encode_blob
from fuse_tier.wire.bulk.pacing import Link
from fuse_tier.wire.bulk.sessions import Direction
from fuse_tier.wire.bulk.transfer import Receipt
from fuse_tier.wire.control_pb2_grpc import PeerStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import MINOR, PROTOCOL
from fuse_tier.wire.partials import blob_at, partials_from_wire, partials_to_wire
from fuse_tier.wire.tls import TlsFiles

log = structlog.get_logger(__name__)

_REFERS = 2  # minor version of those that can say who else has something
_SETTLE_SECONDS = 1.0  # see Client.call
_FIRST_LOOK_SECONDS = 0.02  # whether what another node sends has arrived
_LONGEST_LOOK_SECONDS = 1.0
_ONE_BYTES = 16 << 20
_PATIENCE_SECONDS = 60.0  # with other senders, while nothing of theirs arrives


class PeerTier:
    """The RAM tier of another node. ``close`` it: ``aclose``.

    ``node`` is who the peer should be, None where only its address is known. With certificates, content is
    encrypted when ``encrypt`` says so on either node.
    """

    name = TierName.PEER

    def __init__(
        self,
        node: str | None,
        control: str,
        own: Introduction,
        tls: TlsFiles | None,
        *,
        encrypt: bool = True,
        link: Link | None = None,
    ) -> None:
        self.place = f"peer {node} ({control})" if node else f"peer {control}"
        self._node = node
        self._own = own
        self._tls = tls
        self._encrypt = encrypt
        self._client = Client(control, PeerStub, tls, node, cluster=own.cluster)
        self._bulk = ""  # learned by hello; empty: hello is due
        self._minor = 0
        self._link = link or Link()
        self._lanes = {Direction.PUSH: Lanes(), Direction.PULL: Lanes()}
        self._for_one = Lanes()
        self._threads = trio.CapacityLimiter(math.inf)  # as many as there are lanes
        self._parsing = trio.CapacityLimiter(2)

    async def aclose(self) -> None:
        """Ends the connection, and what is under way on it."""
        await self._client.aclose()

    async def hello(self) -> pb.HelloReply:
        """Asks the peer who it is. Raises TierRefused when we can not work with it, TierUnavailable."""
        own = self._own
        request = pb.HelloRequest(
            protocol=PROTOCOL, minor=MINOR, cluster=own.cluster, node=own.node, instance=own.instance
        )
        reply: pb.HelloReply = await self._call("Hello", request, Deadline.CONTROL_CALL)
        refused = why_refused(reply, own, self._node)
        if refused is not None:
            raise TierRefused(f"{self.place} {refused}")
        if reply.minor != MINOR:
            spoken = f"{reply.protocol}.{reply.minor}"
            log.info("peer.other_version", place=self.place, version=reply.version, protocol=spoken)
        self._bulk = reply.bulk
        self._minor = reply.minor
        return reply

    async def refer(self, blobs: Sequence[Blob]) -> dict[Blob, str]:
        """For content that is about to be fetched from here: which other node to ask instead, and to wait for.

        This node will be asked for it by others in turn, so what is fetched has to stay here.
        """
        await self._introduced()
        if self._minor < _REFERS:
            return {}
        request = pb.ReferRequest(blobs=map(encode_blob, blobs), node=self._own.node)
        reply: pb.ReferReply = await self._ask("Refer", request)
        return {blobs[one.index]: one.node for one in reply.referrals if one.index < len(blobs) and is_name(one.node)}

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        """See Tier."""
        missing: set[Blob] = set()
        asked = sorted(frozenset(blobs))
        for start in range(0, len(asked), MAX_ASKED_BLOBS):
            part = asked[start : start + MAX_ASKED_BLOBS]
            request = pb.BlobList(blobs=map(encode_blob, part))
            reply: pb.BlobList = await self._ask("Missing", request)
            found = {self._decode_blob(encoded) for encoded in reply.blobs}
            missing |= found.intersection(part)
        return missing

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        """See Tier. What was torn by a writer while it was sent is sent once more.

        What others are sending is waited for, and sent from here if it does not come.
        """
        missing = await self.missing(blobs)
        pause, patient_until, patience = _FIRST_LOOK_SECONDS, trio.current_time() + _PATIENCE_SECONDS, Patience()
        while missing:
            elsewhere = await self._send(missing, source, progress, trio.current_time() < patient_until, patience)
            if not elsewhere:
                return
            if elsewhere == missing:  # else there was time for others while we sent
                await trio.sleep(pause)
                pause = min(_LONGEST_LOOK_SECONDS, pause * 2)
            before, missing = elsewhere, await self.missing(elsewhere)
            if len(missing) < len(before):
                patient_until = trio.current_time() + _PATIENCE_SECONDS

    async def _send(
        self, blobs: Collection[Blob], source: Source, progress: Progress, may_leave_out: bool, patience: Patience
    ) -> set[Blob]:
        """Sends blobs that were missing; gives those that the peer wanted left out."""
        left_out: set[Blob] = set()

        async def send(batch: Sequence[Blob], receipt: Receipt) -> bool:
            await self._link.give_way()
            request = pb.PushRequest(
                blobs=map(encode_blob, batch), encrypt=self._encrypt, may_leave_out=may_leave_out
            )
            bulk, session = await self._open("OpenPush", request)
            omitted = {blob_at(batch, index) for index in session.left_out}
            left_out.update(omitted)
            receipt.arrived |= omitted
            sent = tuple(blob for blob in batch if blob not in omitted)
            if not sent:
                return False
            begun = partials_from_wire(batch, session.begun)
            grant = Grant(bulk, session.token, self._tls if session.encrypted else None, begun, self._node)
            pushed = await push(grant, sent, source, progress, self._threads, self._link)
            receipt.arrived |= pushed.arrived
            receipt.failed |= pushed.failed
            receipt.torn |= pushed.torn
            return True

        lanes = self._lanes[Direction.PUSH]
        receipt, _ = await self._in_sessions(lanes, largest_first(blobs), send, patience)
        if receipt.torn and receipt.torn == receipt.failed.keys():
            receipt, _ = await self._in_sessions(lanes, largest_first(receipt.torn), send, patience)
        if receipt.failed:
            raise min(receipt.failed.values(), key=lambda error: not isinstance(error, TierFull))
        return left_out

    async def commit(self, manifest: Manifest) -> None:
        """See Tier."""
        text = await trio.to_thread.run_sync(encode, manifest, limiter=self._parsing)
        await self._ask("Commit", pb.ManifestText(text=text), Deadline.MANIFEST_TRANSFER, _SETTLE_SECONDS)

    async def snapshots(self, identity: Identity | None = None) -> Sequence[SnapshotId]:
        """See Tier."""
        reply: pb.SnapshotsReply = await self._ask("Snapshots", pb.SnapshotsRequest(identity=str(identity or "")))
        try:
            found = {SnapshotId.parse(text) for text in reply.ids}
        except ConfigError as error:
            raise TierRefused(f"{self.place} lists what is no snapshot: {error}") from error
        return sorted(snapshot for snapshot in found if identity is None or snapshot.identity == identity)

    async def manifest(self, snapshot: SnapshotId) -> Manifest:
        """See Tier."""
        request = pb.SnapshotRequest(id=str(snapshot))
        reply: pb.ManifestText = await self._ask("Manifest", request, Deadline.MANIFEST_TRANSFER)
        manifest = await trio.to_thread.run_sync(decode, reply.text, limiter=self._parsing)
        if manifest.id != snapshot:
            raise MalformedManifest(f"{self.place} has the manifest of {manifest.id} as {snapshot}")
        return manifest

    async def fetch(self, blobs: Collection[Blob], sink: Sink, progress: Progress = no_progress) -> Fetched:
        """See Tier. Blobs come in the order that they have, if any; what was torn by a writer is asked for again.

        One file alone is what somebody waits for: unless it is large it does not queue behind much.
        """

        async def receive(batch: Sequence[Blob], receipt: Receipt) -> bool:
            begun: dict[Blob, Partial] = {}
            if isinstance(sink, ResumingSink):
                begun = {blob: kept for blob in batch if (kept := sink.partial(blob)) is not None}
            request = pb.PullRequest(
                blobs=map(encode_blob, batch), encrypt=self._encrypt, begun=partials_to_wire(batch, begun.get)
            )
            bulk, session = await self._open("OpenPull", request)
            grant = Grant(bulk, session.token, self._tls if session.encrypted else None, begun, self._node)
            await pull(grant, batch, sink, progress, self._threads, receipt, self._link)
            return True

        patience, ordered = Patience(), tuple(dict.fromkeys(blobs))
        is_one = len(ordered) == 1 and ordered[0].size <= _ONE_BYTES
        lanes = self._for_one if is_one else self._lanes[Direction.PULL]
        receipt, lost = await self._in_sessions(lanes, ordered, receive, patience)
        if lost is not None:
            raise lost
        if receipt.torn:
            again, _ = await self._in_sessions(lanes, largest_first(receipt.torn), receive, patience)
            receipt.arrived |= again.arrived
            receipt.failed |= again.failed
        failed = {blob: error for blob, error in receipt.failed.items() if blob not in receipt.arrived}
        return Fetched(frozenset(receipt.arrived), failed)

    async def drop(self, snapshot: SnapshotId) -> None:
        """See Tier."""
        await self._ask("Drop", pb.SnapshotRequest(id=str(snapshot)), settle_seconds=_SETTLE_SECONDS)

    async def collect(self, grace_seconds: float) -> int:
        """See Tier. The peer may take a longer grace: others are sending to it as well."""
        request = pb.CollectRequest(grace_seconds=grace_seconds)
        reply: pb.CollectReply = await self._ask("Collect", request, Deadline.MANIFEST_TRANSFER, _SETTLE_SECONDS)
        return reply.freed_bytes

    async def verify(self, identity: Identity | None = None) -> VerifyReport:
        """Has the peer read and hash all that it lists, of one volume or of all."""
        request = pb.VerifyRequest(identity=str(identity or ""))
        reply: pb.VerifyReply = await self._ask("Verify", request, Deadline.VERIFY)
        return VerifyReport(reply.snapshots, reply.blobs, reply.bytes, tuple(reply.damaged))

    async def _in_sessions(
        self, lanes: Lanes, blobs: Sequence[Blob], transfer: Transfer, patience: Patience
    ) -> tuple[Receipt, TierError | None]:
        receipt, lost = await run_sessions(blobs, transfer, lanes, patience)
        for error in receipt.failed.values():
            self._lost_if_unavailable(error)
        return receipt, lost

    async def _open(self, name: str, request: pb.PushRequest | pb.PullRequest) -> tuple[str, pb.Session]:
        """Where the session's stream goes, and the session."""
        bulk = await self._introduced()
        session: pb.Session = await self._call(name, request, Deadline.CONTROL_CALL, _SETTLE_SECONDS)
        if not session.encrypted and self._encrypt and self._tls is not None:
            raise TierRefused(f"{self.place} would send content in the clear: set encryptPeerTraffic there too")
        return bulk, session

    async def _ask(
        self, name: str, request: Any, deadline_seconds: float = Deadline.CONTROL_CALL, settle_seconds: float = 0.0
    ) -> Any:
        await self._introduced()
        return await self._call(name, request, deadline_seconds, settle_seconds)

    async def _introduced(self) -> str:
        """The peer's bulk address, after a hello that went well."""
        return self._bulk or (await self.hello()).bulk

    async def _call(self, name: str, request: Any, deadline_seconds: float, settle_seconds: float = 0.0) -> Any:
        """One call, with no errors but those of tiers."""
        try:
            return await self._client.call(name, request, deadline_seconds, settle_seconds)
        except TierError as error:
            self._lost_if_unavailable(error)
            raise
        except DeadlineExceeded as error:
            self._bulk = ""
            raise TierUnavailable(f"{self.place}: {error}") from error
        except FuseTierError as error:
            raise TierRefused(f"{self.place} refused {name}: {error}") from error

    def _lost_if_unavailable(self, error: TierError) -> None:
        if isinstance(error, TierUnavailable):
            self._bulk = ""  # whoever answers next may be another

    def _decode_blob(self, encoded: bytes) -> Blob:
        try:
            return decode_blob(encoded)
        except InvalidRequest as error:
            raise TierRefused(f"{self.place} names what is no blob: {error}") from error
