"""Who goes on with a volume, and what becomes of the tree that another node left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import FuseTierError
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Kind, Manifest
from fuse_tier.members import Member
from fuse_tier.replicate.record import read_record
from fuse_tier.replicate.succession import find_successor, supersede, was_left
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import TierName
from tests.harness.logs import ExpectedLogs
from tests.replicate.conftest import IDENTITY, LINEAGE, Bench

OWN = Member("own", "own1", "own:1", "own:2", alive=True)
BEFORE = Member("before", "before1", "before:1", "before:2", alive=True)


def taken_by(node: str, number: int) -> Manifest:
    return Manifest(SnapshotId(IDENTITY, number), LINEAGE, node, 0, (Entry(b"", Kind.DIRECTORY, 0o755),))


def again(bench: Bench) -> Volume:
    """The volume as a worker finds it that has just started."""
    return Volume(IDENTITY, bench.ram, bench.layout, bench.volume.options, trio.CapacityLimiter(1))


@pytest.mark.parametrize("node", ["before", "own"])
def test_a_volume_that_was_given_back_was_not_left(node: str) -> None:
    assert not was_left(IDENTITY, taken_by(node, 57), OWN, [BEFORE])


@pytest.mark.parametrize(
    "others",
    [[], [replace(BEFORE, alive=False)], [BEFORE, Member("x", "x", "x:1", "x:2", False, mounted={IDENTITY})]],  # type: ignore[arg-type]
)
def test_a_volume_whose_node_is_gone_was_left(others: list[Member]) -> None:
    assert was_left(IDENTITY, taken_by("before", 57), OWN, others)


async def test_no_snapshot_is_taken_of_a_tree_that_another_node_has_gone_on_with(
    bench: Bench, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.superseded")
    (bench.tree / "a").write_bytes(b"a")
    await bench.volume.take_snapshot()
    await supersede(bench.volume, bench.ram, "b")
    (bench.tree / "b").write_bytes(b"b")
    bench.volume.changes.announce()
    with pytest.raises(FuseTierError, match="taken over by b"):
        await bench.volume.take_snapshot()
    assert (bench.tree / "b").read_bytes() == b"b"
    restarted = again(bench)
    await restarted.load()
    assert restarted.tenure.superseded == "b"


async def test_what_nobody_else_has_goes_from_the_list_of_a_mounted_tree_that_was_superseded(
    bench: Bench, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.superseded")
    bench.volume.mountpoint = "/mnt"
    for name in "abc":
        (bench.tree / name).write_bytes(name.encode())
        await bench.volume.take_snapshot()
    await bench.ram.commit(taken_by("b", 1001))
    bench.volume.copies.stored(TierName.PEER, "b", 1)
    await supersede(bench.volume, bench.ram, "b")
    assert [snapshot.number for snapshot in await bench.ram.snapshots()] == [1, 1001]


async def test_a_worker_that_finds_a_newer_copy_of_another_node_knows_that_its_tree_is_the_old_one(
    bench: Bench, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("volume.superseded")
    (bench.tree / "a").write_bytes(b"a")
    await bench.volume.take_snapshot()
    await bench.ram.commit(taken_by("b", 5))
    restarted = again(bench)
    await restarted.load()
    await find_successor(restarted, bench.ram)
    assert restarted.tenure.superseded == "b"
    record = read_record(restarted.layout)
    assert record is not None
    assert record.superseded == "b"


async def test_a_snapshot_of_its_own_that_a_crash_left_without_a_record_is_no_successor(bench: Bench) -> None:
    (bench.tree / "a").write_bytes(b"a")
    await bench.volume.take_snapshot()
    await bench.ram.commit(taken_by(bench.volume.options.node, 2))
    restarted = again(bench)
    await restarted.load()
    await find_successor(restarted, bench.ram)
    assert not restarted.tenure.superseded
    assert Path(restarted.layout.tree, "a").read_bytes() == b"a"
