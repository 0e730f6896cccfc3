"""A peer as real as it gets within one process: its RAM tier on a tmpfs, its control and bulk ports on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from fuse_tier.identity import Identity
from fuse_tier.members import Location, Member
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.peer_service import CARRIERS, PeerService
from fuse_tier.tiers.peer import Introduction, PeerTier
from fuse_tier.tiers.ram import RamTier
from fuse_tier.wire import grpc
from fuse_tier.wire.bulk.pacing import Link
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Sessions
from fuse_tier.wire.control_pb2_grpc import add_PeerServicer_to_server
from fuse_tier.wire.tls import TlsFiles

CLUSTER = "test"
OWN = Introduction(CLUSTER, "a", "a-1")


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that serves its peers."""

    node: str
    layout: Layout
    ram: RamTier
    sessions: Sessions
    control: str
    bulk: str
    addresses: dict[str, str]  # what it says of itself: to be changed by tests
    owners: dict[Identity, set[str]]  # who has volumes mounted, as it was told: ``a``, where nothing is said
    locations: dict[Identity, Location]  # who has copies, and had them mounted last, as it was told: nobody

    def tier(
        self,
        tls: TlsFiles | None = None,
        *,
        own: Introduction = OWN,
        encrypt: bool = True,
        link: Link | None = None,
    ) -> PeerTier:
        """It, as another node sees it; to be closed."""
        return PeerTier(self.node, self.control, own, tls, encrypt=encrypt, link=link)


@asynccontextmanager
async def running_peer(
    root: Path,
    tls: TlsFiles | None = None,
    *,
    node: str = "b",
    cluster: str = CLUSTER,
    encrypt: bool = True,
    link: Link | None = None,
    listen: tuple[str, str] = ("127.0.0.1:0", "127.0.0.1:0"),
) -> AsyncIterator[Peer]:
    """Serves until the block ends, at ``listen``. Content is collected at once when a peer asks for it."""
    layout = Layout(str(root))
    create_directories(layout)
    ram, sessions = RamTier(layout, node), Sessions()
    owners: dict[Identity, set[str]] = {}
    locations: dict[Identity, Location] = {}
    addresses = {"control": "", "bulk": ""}

    def own() -> Member:
        return Member(node, f"{node}-1", addresses["control"], addresses["bulk"], True, 1 << 40, 1 << 39)

    async def locate(identity: Identity) -> Location:
        await trio.lowlevel.checkpoint()
        return locations.get(identity, Location())

    service = PeerService(
        ram,
        sessions,
        own,
        cluster,
        secure=tls is not None,
        encrypt=encrypt,
        mounted_on=lambda identity: owners.get(identity, {OWN.node}),
        locate=locate,
        smallest_grace_seconds=0.0,
    )
    async with trio.open_nursery() as nursery:
        bulk = await nursery.start(partial(serve_bulk, listen[1], sessions, ram, ram, tls, link=link))
        control = await nursery.start(
            partial(grpc.serve, [(add_PeerServicer_to_server, service)], listen[0], tls, carriers=CARRIERS)
        )
        addresses.update(control=f"127.0.0.1:{control}", bulk=f"127.0.0.1:{bulk}")
        control_at, bulk_at = addresses["control"], addresses["bulk"]
        yield Peer(node, layout, ram, sessions, control_at, bulk_at, addresses, owners, locations)
        nursery.cancel_scope.cancel()
