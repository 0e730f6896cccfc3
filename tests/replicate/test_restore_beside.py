"""A restore from the own RAM, while another job of the node goes on with files of the same content."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fuse_tier.blobs import Blob, Progress
from fuse_tier.errors import TierRefused
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Manifest
from fuse_tier.members import Domain
from fuse_tier.ram.content import RamContent
from fuse_tier.replicate.by_peers import PeerMembership
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.own import OwnNode
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.volume import Volume, VolumeOptions
from fuse_tier.tiers.base import no_progress
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench
from tests.replicate.test_restore import no_facts, no_peers


class Writing:
    """Another job of the node, whose file ``a`` is a blob: it writes to that as soon as somebody has opened it."""

    def __init__(self, bench: Bench, *, at: int) -> None:
        """``at``: the first time that it is opened, or the second, or so."""
        self._bench = bench
        self._left = at
        self._opens = RamContent.open

    def open(self, content: RamContent, blob: Blob) -> int:
        """As the RAM tier does."""
        fd = self._opens(content, blob)
        self._left -= 1
        if self._left == 0:
            write(self._bench)
        return fd


def write(bench: Bench) -> None:
    path = bench.tree / "a"
    bench.volume.pins.detach(path.stat().st_ino)  # what its daemon does before it lets anybody write
    path.write_bytes(b"newer")


class Beside:
    """Another volume of the bench's node, a snapshot of which has the content of the first one's."""

    def __init__(self, bench: Bench) -> None:
        own = OwnNode("a", "1", "default", "127.0.0.1:1", "127.0.0.1:2", Domain(), no_facts, None)
        self.bench = bench
        places = Places(bench.ram, PeerMembership(own, ()), None, no_peers)
        self.restorer = Restorer(bench.layout, bench.ram, Fetcher(places, "a"), trio.CapacityLimiter(2))
        identity = replace(IDENTITY, replica="1")
        self.volume = Volume(identity, bench.ram, bench.layout, VolumeOptions("a", 0.05, 1), trio.CapacityLimiter(2))

    async def restore(self, taken: Manifest, progress: Progress = no_progress) -> bytes:
        """What a restored file ``a`` has."""
        manifest = replace(taken, id=SnapshotId(self.volume.identity, 1))
        await self.bench.ram.commit(manifest)
        await self.volume.load()
        await self.restorer.into_volume(self.volume, Chosen(manifest, (self.bench.ram,)), LINEAGE, progress)
        return Path(self.volume.layout.tree, "a").read_bytes()


@pytest.mark.parametrize("at", [1, 2], ids=["checked", "copied"])
async def test_a_job_may_write_to_a_file_whose_content_another_volume_is_restored_from(
    at: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.tree / "a").write_bytes(b"old")
    taken = await bench.snapshot()
    writing = Writing(bench, at=at)
    monkeypatch.setattr(RamContent, "open", lambda content, blob: writing.open(content, blob))
    assert await Beside(bench).restore(taken) == b"old"
    assert (bench.tree / "a").read_bytes() == b"newer"
    assert await bench.ram.missing(taken.blobs) == set()


async def test_files_of_two_volumes_are_never_one_whenever_a_job_writes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.tree / "a").write_bytes(b"old")
    taken = await bench.snapshot()
    links, beside = os.link, Beside(bench)

    def link(source: str, target: str) -> None:
        links(source, target)
        if target.startswith(beside.volume.layout.root):
            write(bench)

    monkeypatch.setattr(os, "link", link)
    assert await beside.restore(taken) == b"old"
    assert (bench.tree / "a").read_bytes() == b"newer"


async def test_content_that_cannot_be_read_now_is_not_taken_for_damaged(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    (bench.tree / "b").write_bytes(b"b")
    taken = await bench.snapshot()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def runs_out(moved: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))

    try:
        with pytest.raises(TierRefused, match="cannot be read: Too many open files"):
            await Beside(bench).restore(taken, runs_out)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await bench.ram.missing(taken.blobs) == set()
