"""The slow scrub: damage in RAM is found, set aside, and mended from wherever there is a copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.errors import NotFound, TierError, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.scrubbed import read_scrubbed
from fuse_tier.ram.tmpfs import create_directories
from fuse_tier.replicate.scrub import Scrubber
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.tiers.ram import RamTier
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import check_producible, holding, keep
from tests.harness.unreadable import Unreadable
from tests.harness.unreadable import unreadable as unreadable

FAST = 1e12


class Others:
    """Places besides the RAM tier."""

    def __init__(self, ram: RamTier) -> None:
        self.ram = ram
        self.have: MemoryBlobs | None = MemoryBlobs()
        self.asked: list[set[Blob]] = []

    async def fetch(self, blobs: Collection[Blob]) -> Mapping[Blob, TierError]:
        self.asked.append(set(blobs))
        if self.have is None:
            return dict.fromkeys(blobs, TierUnavailable("nobody answers"))
        there = [blob for blob in blobs if blob in self.have.contents]
        await self.ram.store(there, self.have)
        return {blob: NotFound(f"no place has {blob}") for blob in blobs if blob not in there}


@pytest.fixture
def ram(memory_path: Path) -> RamTier:
    layout = Layout(str(memory_path))
    create_directories(layout)
    return RamTier(layout, "a")


@pytest.fixture
def others(ram: RamTier) -> Others:
    return Others(ram)


def damage(ram: RamTier, blob: Blob) -> None:
    with open(ram.layout.blob(blob), "r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))


def count(name: str) -> float:
    return metrics.REGISTRY.get_sample_value(name) or 0.0


async def test_what_is_intact_is_left_alone(ram: RamTier, others: Others) -> None:
    await keep(ram, {"weights": b"0123" * 1000, "empty": b""})
    before = count("fuse_tier_scrubbed_bytes_total")
    await Scrubber(ram, others.fetch, 3600, FAST).go_through()
    assert others.asked == []
    assert count("fuse_tier_scrubbed_bytes_total") == before + 4000


async def test_damage_is_set_aside_told_counted_and_mended(
    ram: RamTier, others: Others, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("scrub.damaged")
    good, bad = hash_bytes(b"4567"), hash_bytes(b"0123")
    await keep(ram, {"weights": b"0123", "optimizer": b"4567"})
    others.have = holding([b"0123"])
    damage(ram, bad)
    before = count("fuse_tier_scrub_damaged_total")
    await Scrubber(ram, others.fetch, 3600, FAST).go_through()
    assert others.asked == [{bad}]
    assert count("fuse_tier_scrub_damaged_total") == before + 1
    (line,) = expected_logs.heard
    assert bad.name in line.text
    assert os.listdir(ram.layout.incoming) == [f"damaged-{bad.name}"]
    assert await ram.missing([good, bad]) == set()
    await check_producible(ram)


async def test_what_has_another_size_or_is_gone_is_mended_too(
    ram: RamTier, others: Others, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("scrub.damaged", "blob.damaged")
    await keep(ram, {"weights": b"0123", "optimizer": b"4567"})
    others.have = holding([b"0123", b"4567"])
    os.truncate(ram.layout.blob(hash_bytes(b"0123")), 2)
    os.unlink(ram.layout.blob(hash_bytes(b"4567")))
    await Scrubber(ram, others.fetch, 3600, FAST).go_through()
    await check_producible(ram)


@pytest.mark.fuse
async def test_what_cannot_be_read_is_set_aside_and_mended_and_the_rest_is_looked_at(
    ram: RamTier,
    others: Others,
    expected_logs: ExpectedLogs,
    unreadable: Unreadable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected_logs.allow("scrub.damaged")
    content = unreadable.content(5000)
    await keep(ram, {"weights": content, "optimizer": b"4567", "marker": b"0123"})
    others.have = holding([content, b"4567", b"0123"])
    lost = unreadable.lose(ram.layout, 5000, monkeypatch)
    damage(ram, hash_bytes(b"4567"))
    damage(ram, hash_bytes(b"0123"))
    await Scrubber(ram, others.fetch, 3600, FAST).go_through()
    assert others.asked == [{lost, hash_bytes(b"4567"), hash_bytes(b"0123")}]
    await check_producible(ram)


async def test_damaged_content_is_given_to_nobody_while_it_cannot_be_mended(
    ram: RamTier, others: Others, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("scrub.damaged", "scrub.not_mended")
    bad = hash_bytes(b"0123")
    await keep(ram, {"weights": b"0123"})
    others.have = None
    damage(ram, bad)
    scrubber = Scrubber(ram, others.fetch, 3600, FAST)
    await scrubber.go_through()
    assert scrubber.lost == {bad}
    with pytest.raises(NotFound):
        ram.open(bad)


async def test_what_could_not_be_mended_is_asked_for_again_until_somebody_has_it(
    ram: RamTier, others: Others, expected_logs: ExpectedLogs, mock_clock: MockClock
) -> None:
    expected_logs.allow("scrub.damaged", "scrub.not_mended")
    bad = hash_bytes(b"0123")
    await keep(ram, {"weights": b"0123"})
    others.have = None
    damage(ram, bad)
    scrubber = Scrubber(ram, others.fetch, 3600, FAST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrubber.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(3600)
        await _until(lambda: scrubber.lost == {bad})
        others.have = holding([b"0123"])
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(60)
        await _until(lambda: not scrubber.lost)
        nursery.cancel_scope.cancel()
    await check_producible(ram)


HOUR = 3600


def wall_clock() -> float:
    """Goes as trio's does."""
    return 1.8e9 + trio.current_time()


async def restarted(ram: RamTier, others: Others, clock: MockClock, hours: float, done: Callable[[], bool]) -> None:
    """A worker that scrubs each day lives for so long, and until something is done."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Scrubber(ram, others.fetch, 24 * HOUR, FAST, wall_clock).run)
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(hours * HOUR)
        await _until(done)
        nursery.cancel_scope.cancel()


async def test_restarts_do_not_put_a_round_off(
    ram: RamTier, others: Others, expected_logs: ExpectedLogs, mock_clock: MockClock
) -> None:
    expected_logs.allow("scrub.damaged")
    await keep(ram, {"weights": b"0123"})
    others.have = holding([b"0123"])
    damage(ram, hash_bytes(b"0123"))
    first = wall_clock()
    await restarted(ram, others, mock_clock, 11, lambda: read_scrubbed(ram.layout, wall_clock()) == int(first))
    await restarted(ram, others, mock_clock, 11, lambda: True)
    assert others.asked == []
    await restarted(ram, others, mock_clock, 11, lambda: read_scrubbed(ram.layout, wall_clock()) != int(first))
    assert others.asked == [{hash_bytes(b"0123")}]
    await restarted(ram, others, mock_clock, 23, lambda: True)
    assert read_scrubbed(ram.layout, wall_clock()) == int(first) + 33 * HOUR  # the next is due a day after that
    await restarted(
        ram, others, mock_clock, 2, lambda: read_scrubbed(ram.layout, wall_clock()) == int(first) + 58 * HOUR
    )


@pytest.mark.parametrize("note", ["", "yesterday", "-1", "1.5", "9" * 40, str(int(1.8e9) + HOUR)])
async def test_a_note_that_is_broken_or_of_the_future_is_none(
    ram: RamTier, others: Others, mock_clock: MockClock, note: str
) -> None:
    Path(ram.layout.scrubbed).write_text(note)
    assert read_scrubbed(ram.layout, 1.8e9) is None
    now = wall_clock()
    await restarted(ram, others, mock_clock, 0, lambda: read_scrubbed(ram.layout, now) == int(now))


async def _until(fact: Callable[[], bool]) -> None:
    while not fact():
        await trio.lowlevel.checkpoint()


async def test_a_job_that_writes_while_it_is_read_is_no_damage(ram: RamTier, others: Others) -> None:
    await keep(ram, {"weights": b"0123"})
    blob = hash_bytes(b"0123")
    path = ram.layout.blob(blob)

    def writes_once(moved: int) -> None:
        """As a detach does: another file takes the name, and the one that is being read changes."""
        if os.path.exists(f"{path}.live"):
            return
        os.rename(path, f"{path}.live")
        Path(path).write_bytes(b"0123")

    Path(path).write_bytes(b"9999")
    assert ram.what_is_wrong([blob], writes_once) == {}


async def test_it_reads_no_faster_than_it_may_and_ends_when_it_is_told(ram: RamTier, others: Others) -> None:
    await keep(ram, {"weights": bytes(4 << 20)})
    with trio.move_on_after(0.2) as scope:  # at this rate it would take a minute
        await Scrubber(ram, others.fetch, 3600, (4 << 20) / 60).go_through()
    assert scope.cancelled_caught
