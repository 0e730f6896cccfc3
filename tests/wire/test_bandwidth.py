"""The limit of a node's bandwidth holds for what really moves: every byte of content asks for its turn, at both ends.

When a turn comes is for test_pacing.py; here all come at once, and what is asked for is counted.
"""

from __future__ import annotations

import random
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire.bulk.format import HEADER_BYTES, VERDICT_BYTES
from fuse_tier.wire.bulk.pacing import Link, Pace, Urgency
from tests.wire.bulk import contents_of
from tests.wire.certificates import Certificates, make_certificates
from tests.wire.peers import running_peer

SIZES = (0, 1, 4096, 65_536, 65_537, 1 << 20, (3 << 20) + 7)  # in buffers together, and by themselves
PART = 16 << 10


class Counting(Pace):
    """One that keeps what was asked of it. So fast that nobody waits; in small parts, as that of a slow link."""

    def __init__(self) -> None:
        super().__init__(1e12)
        self.asked: list[tuple[Urgency, int]] = []

    @property
    def part(self) -> int:
        return PART

    def take(self, urgency: Urgency, size: int, stopped: threading.Event) -> None:
        self.asked.append((urgency, size))
        super().take(urgency, size, stopped)

    def asked_since(self, begin: int, urgency: Urgency) -> int:
        """Bytes, all of which had this urgency."""
        asked = self.asked[begin:]
        assert {found for found, _ in asked} <= {urgency}
        return sum(size for _, size in asked)


class CountingLink(Link):
    """What a node has that has a limit."""

    out: Counting
    into: Counting

    def __init__(self) -> None:
        super().__init__()
        self.out, self.into = Counting(), Counting()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("encrypted", [False, True])
async def test_every_byte_that_is_sent_or_received_has_asked_for_its_turn(
    memory_path: Path, certificates: Certificates, rng: random.Random, encrypted: bool
) -> None:
    ours, theirs = CountingLink(), CountingLink()
    source, sink = contents_of(SIZES, rng), MemoryBlobs()
    moved = sum(HEADER_BYTES + size for size in SIZES)
    owed = PART * len(SIZES)  # what was received is paid for in parts: each stream may end with less
    tls = (certificates.a, certificates.b) if encrypted else (None, None)
    async with (
        running_peer(memory_path, tls[1], link=theirs) as peer,
        aclosing(peer.tier(tls[0], link=ours)) as tier,
    ):
        await tier.store(source.contents, source)
        assert ours.out.asked_since(0, Urgency.REPLICATION) == moved
        assert moved - owed < theirs.into.asked_since(0, Urgency.REPLICATION) <= moved
        assert theirs.out.asked_since(0, Urgency.REPLICATION) == VERDICT_BYTES * len(SIZES)
        begin = len(theirs.out.asked), len(ours.into.asked)
        assert (await tier.fetch(source.contents, sink)).failed == {}
        assert sink.contents == source.contents
        assert theirs.out.asked_since(begin[0], Urgency.RESTORE) == moved
        assert moved - owed < ours.into.asked_since(begin[1], Urgency.RESTORE) <= moved
