from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar

import pytest

from fuse_tier.blobs import Blob
from fuse_tier.identity import SnapshotId
from fuse_tier.tiers.base import Tier
from fuse_tier.wire.tls import TlsFiles, make_authority, make_certificate
from tests.tiers.contract import TierContract
from tests.wire.peers import Peer, running_peer


def certificates(directory: Path, *names: str) -> list[TlsFiles]:
    """Of a new authority."""
    directory.mkdir()
    make_authority(str(directory))
    return [make_certificate(str(directory), name, ["127.0.0.1"]) for name in names]


class PeerContract(TierContract):
    announced = ("blob.damaged", "ram.manifests_unreadable")
    peer: ClassVar[Peer]

    async def replace_content(self, tier: Tier, blob: Blob, content: bytes) -> None:
        path = Path(self.peer.layout.blob(blob))
        path.unlink()
        path.write_bytes(content)

    async def replace_manifest(self, tier: Tier, snapshot: SnapshotId, text: bytes) -> None:
        Path(self.peer.layout.manifest(snapshot)).write_bytes(text)


class TestPeerTierInTheClear(PeerContract):
    @pytest.fixture
    async def tier(self, memory_path: Path) -> AsyncIterator[Tier]:
        async with running_peer(memory_path) as peer, aclosing(peer.tier()) as tier:
            type(self).peer = peer
            yield tier


class TestPeerTierUnderTls(PeerContract):
    @pytest.fixture
    async def tier(self, memory_path: Path, tmp_path: Path) -> AsyncIterator[Tier]:
        ours, theirs = certificates(tmp_path / "tls", "a", "b")
        async with running_peer(memory_path, theirs) as peer, aclosing(peer.tier(ours)) as tier:
            type(self).peer = peer
            yield tier
