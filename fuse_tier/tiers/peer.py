"""A peer's RAM as a tier: control calls for everything but content, which goes over bulk streams.

The first call says hello: a peer of another cluster or version, or one that is not who it should be, is refused
before anything is asked of it, and so it is again after it could not be reached. Content goes in sessions of
limited size, two at a time, so that a lost stream costs little and a large file does not hold up the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from fuse_tier.blobs import Blob, Progress, Sink, Source
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
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Manifest, decode, encode
from fuse_tier.tiers.base import Fetched, TierName, no_progress
from fuse_tier.verified import VerifyReport
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.bulk.client import Grant, pull, push
from fuse_tier.wire.bulk.format import MAX_SESSION_BLOBS, decode_blob, encode_blob
from fuse_tier.wire.bulk.transfer import Receipt
from fuse_tier.wire.control_pb2_grpc import PeerStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.members import PROTOCOL
from fuse_tier.wire.tls import TlsFiles

_SESSION_BYTES = 256 << 20
_STREAMS = 2  # a transfer's; more of them would only take turns on a node's link
_STREAMS_OF_ALL = 4  # transfers with this peer together
_BLOBS_A_CALL = 1 << 14
_SETTLE_SECONDS = 1.0  # see Client.call


@dataclass(frozen=True, slots=True)
class Introduction:
    """What this node says of itself to a peer."""

    cluster: str
    node: str
    instance: str  # random, new at each start of the worker


class PeerTier:
    """The RAM tier of another node. ``close`` it: ``aclose``.

    ``node`` is who the peer should be, None where only its address is known. With certificates, content is
    encrypted when ``encrypt`` says so on either node.
    """

    name = TierName.PEER

    def __init__(
        self, node: str | None, control: str, own: Introduction, tls: TlsFiles | None, *, encrypt: bool = True
    ) -> None:
        self.place = f"peer {node} ({control})" if node else f"peer {control}"
        self._node = node
        self._own = own
        self._tls = tls
        self._encrypt = encrypt
        self._client = Client(control, PeerStub, tls)
        self._bulk = ""  # learned by hello; empty: hello is due
        self._turns = trio.CapacityLimiter(_STREAMS_OF_ALL)  # taken before a session is opened: it must begin soon
        self._threads = trio.CapacityLimiter(_STREAMS_OF_ALL)
        self._parsing = trio.CapacityLimiter(2)

    async def aclose(self) -> None:
        """Ends the connection, and what is under way on it."""
        await self._client.aclose()

    async def hello(self) -> pb.HelloReply:
        """Asks the peer who it is. Raises TierRefused when we can not work with it, TierUnavailable."""
        own = self._own
        request = pb.HelloRequest(protocol=PROTOCOL, cluster=own.cluster, node=own.node, instance=own.instance)
        reply: pb.HelloReply = await self._call("Hello", request, Deadline.CONTROL_CALL)
        if reply.protocol != PROTOCOL:
            raise TierRefused(
                f"{self.place} runs fuse-tier {reply.version} with protocol {reply.protocol}, and this node speaks "
                f"protocol {PROTOCOL}: run one version on all nodes"
            )
        if reply.cluster != own.cluster:
            raise TierRefused(
                f"{self.place} belongs to cluster {reply.cluster!r}, and this node to {own.cluster!r}: correct the "
                "cluster or the peers' addresses in node.yaml"
            )
        if reply.node == own.node:
            if reply.instance == own.instance:
                raise TierRefused(f"{self.place} is this node itself: take its address out of peers in node.yaml")
            raise TierRefused(
                f"{self.place} has this node's name {own.node!r}: two nodes of one name would take each other's "
                "copies for their own; give one of them another name in node.yaml"
            )
        if self._node is not None and reply.node != self._node:
            raise TierRefused(
                f"{self.place} is node {reply.node!r}: correct the address, or wait until the coordinator has noticed"
            )
        self._bulk = reply.bulk
        return reply

    async def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        """See Tier."""
        missing: set[Blob] = set()
        asked = sorted(frozenset(blobs))
        for start in range(0, len(asked), _BLOBS_A_CALL):
            part = asked[start : start + _BLOBS_A_CALL]
            request = pb.BlobList(blobs=map(encode_blob, part))
            reply: pb.BlobList = await self._ask("Missing", request)
            found = {self._decode_blob(encoded) for encoded in reply.blobs}
            missing |= found.intersection(part)
        return missing

    async def store(self, blobs: Collection[Blob], source: Source, progress: Progress = no_progress) -> None:
        """See Tier. What was torn by a writer while it was sent is sent once more."""
        missing = await self.missing(blobs)

        async def send(batch: Sequence[Blob], receipt: Receipt) -> None:
            request = pb.PushRequest(blobs=map(encode_blob, batch), encrypt=self._encrypt)
            pushed = await push(await self._open("OpenPush", request), batch, source, progress, self._threads)
            receipt.arrived |= pushed.arrived
            receipt.failed |= pushed.failed
            receipt.torn |= pushed.torn

        receipt, _ = await self._in_sessions(missing, send)
        if receipt.torn and receipt.torn == receipt.failed.keys():
            receipt, _ = await self._in_sessions(receipt.torn, send)
        if receipt.failed:
            raise min(receipt.failed.values(), key=lambda error: not isinstance(error, TierFull))

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
        """See Tier. What was torn by a writer while it was read is asked for once more."""

        async def receive(batch: Sequence[Blob], receipt: Receipt) -> None:
            request = pb.PullRequest(blobs=map(encode_blob, batch), encrypt=self._encrypt)
            await pull(await self._open("OpenPull", request), batch, sink, progress, self._threads, receipt)

        receipt, lost = await self._in_sessions(frozenset(blobs), receive)
        if lost is not None:
            raise lost
        if receipt.torn:
            again, _ = await self._in_sessions(receipt.torn, receive)
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
        self, blobs: Collection[Blob], transfer: Callable[[Sequence[Blob], Receipt], Awaitable[None]]
    ) -> tuple[Receipt, TierError | None]:
        """Runs ``transfer`` for batches; gives what became of each blob, and an error if it became of all."""
        whole = Receipt()
        broken: list[TierError] = []
        waiting = batches(blobs)

        async def work() -> None:
            for batch in waiting:
                receipt = Receipt()
                try:
                    async with self._turns:
                        await transfer(batch, receipt)
                except FuseTierError as raised:
                    error = raised if isinstance(raised, TierError) else TierRefused(str(raised))
                    self._lost_if_unavailable(error)
                    broken.append(error)
                    known = receipt.arrived | receipt.failed.keys()
                    receipt.failed |= {blob: error for blob in batch if blob not in known}
                whole.arrived |= receipt.arrived
                whole.failed |= receipt.failed
                whole.torn |= receipt.torn

        async with trio.open_nursery() as nursery:
            for _ in range(_STREAMS):
                nursery.start_soon(work)
        if broken and not whole.arrived and all(error in broken for error in whole.failed.values()):
            return whole, broken[0]
        return whole, None

    async def _open(self, name: str, request: pb.PushRequest | pb.PullRequest) -> Grant:
        bulk = await self._introduced()
        session: pb.Session = await self._call(name, request, Deadline.CONTROL_CALL, _SETTLE_SECONDS)
        if not session.encrypted and self._encrypt and self._tls is not None:
            raise TierRefused(f"{self.place} would send content in the clear: set encryptPeerTraffic there too")
        return Grant(bulk, session.token, self._tls if session.encrypted else None)

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


def batches(blobs: Collection[Blob]) -> Iterator[tuple[Blob, ...]]:
    """Blobs in sessions: large ones first and nearly alone, so that two streams end at about the same time."""
    batch: list[Blob] = []
    size = 0
    for blob in sorted(blobs, key=lambda blob: (-blob.size, blob.digest)):
        if batch and (len(batch) == MAX_SESSION_BLOBS or size + blob.size > _SESSION_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(blob)
        size += blob.size
    if batch:
        yield tuple(batch)
