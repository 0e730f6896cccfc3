"""What the bucket records of jobs, and what is restored from it with nothing but its name."""

from __future__ import annotations

import json
import os
import pty
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from fuse_tier.checkpoints import Checkpoint, Job, Saved, encode
from fuse_tier.completeness import newest_complete
from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.errors import Damaged, MalformedManifest, MountError, NotFound
from fuse_tier.hashing import hash_bytes
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.replicate.offline import Wanted, restore_from_bucket
from fuse_tier.replicate.records import JobRecords
from fuse_tier.replicate.steps import Report
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers.bucket import BucketTier
from tests.cli.conftest import run, running
from tests.harness.snapshots import keep

BUCKET = "checkpoints"
URL = f"gs://{BUCKET}/team"
JOB = Job("default", "llama")
AT = 1_700_000_000_000_000_000
ZERO, ONE = JOB.identity("0"), JOB.identity("1")


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with running_emulator(BUCKET) as emulator:
        yield emulator


@pytest.fixture
async def tier(emulator: Emulator) -> AsyncIterator[BucketTier]:
    tier = BucketTier(URL, emulator.endpoint, patience=0.5)
    yield tier
    await tier.aclose()


@pytest.fixture
def beside(emulator: Emulator) -> Any:
    """The bucket, as anybody's tools see it."""
    client = storage.Client(
        "tests",
        AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options={"api_endpoint": emulator.endpoint},
    )
    yield client.bucket(BUCKET)
    client.close()


def checkpoint_of(step: int, at: int = AT, **snapshots: int) -> Checkpoint:
    replicas = {name.removeprefix("r"): number for name, number in snapshots.items()}
    return Checkpoint(JOB, Lineage("llama"), step, at, replicas or {"0": 1})


async def save_step(tier: BucketTier, identity: Identity, number: int, step: int) -> Saved:
    """A rank's tree with one more step in it."""
    files = {f"{one}.txt": b"old" for one in range(2)} | {"notes": f"{identity} {step}".encode()}
    manifest = await keep(tier, files, number, identity)
    return replace(Saved.of(manifest), step=step, created_ns=AT + number)


async def complete(tier: BucketTier, number: int, step: int) -> str:
    parts = [await save_step(tier, identity, number, step) for identity in (ZERO, ONE)]
    found = newest_complete(JOB, parts)
    assert found is not None
    return await JobRecords(tier).record(found)


async def restored(tier: BucketTier, target: Path, **wanted: Any) -> Any:
    return await restore_from_bucket(tier, Wanted(ZERO, **wanted), str(target), Report())


async def test_a_record_stands_where_the_layout_says_and_is_written_once(tier: BucketTier, beside: Any) -> None:
    checkpoint = checkpoint_of(100)
    assert await JobRecords(tier).record(checkpoint) == "2023-11-14_22-13"
    assert await JobRecords(tier).record(checkpoint) == "2023-11-14_22-13"
    text = beside.blob("team/checkpoints/default/llama/2023-11-14_22-13.json").download_as_bytes()
    assert text == encode(checkpoint)
    assert await JobRecords(tier).checkpoint(JOB, "2023-11-14_22-13") == checkpoint
    assert (await JobRecords(tier).listing(JOB)).checkpoints == ("2023-11-14_22-13",)


async def test_checkpoints_of_one_minute_are_told_apart_by_their_seconds(tier: BucketTier) -> None:
    names = [await JobRecords(tier).record(checkpoint_of(step, AT + step)) for step in (1, 2, 3)]
    assert names == ["2023-11-14_22-13", "2023-11-14_22-13-20", "2023-11-14_22-13-20.000000003"]
    assert [(await JobRecords(tier).checkpoint(JOB, name)).step for name in names] == [1, 2, 3]


async def test_names_sort_as_checkpoints_came_also_when_an_earlier_name_is_free_again(tier: BucketTier) -> None:
    records = JobRecords(tier)
    first = await records.record(checkpoint_of(1, AT))
    second = await records.record(checkpoint_of(2, AT + 5 * 10**9), first)
    await records.drop(JOB, [first])
    third = await records.record(checkpoint_of(3, AT + 9 * 10**9), second)
    assert first < second < third


async def test_of_two_writers_at_once_both_end_well_and_one_record_is_there(
    tier: BucketTier, emulator: Emulator
) -> None:
    other = BucketTier(URL, emulator.endpoint, patience=0.5)
    names: list[str] = []

    async def write(place: BucketTier) -> None:
        names.append(await JobRecords(place).record(checkpoint_of(100)))

    async with trio.open_nursery() as nursery:
        for place in (tier, other) * 4:
            nursery.start_soon(write, place)
    await other.aclose()
    assert set(names) == set((await JobRecords(tier).listing(JOB)).checkpoints)
    assert len(set(names)) == 1


async def test_foreign_objects_among_the_records_are_left_alone_and_damaged_ones_refused(
    tier: BucketTier, beside: Any
) -> None:
    await JobRecords(tier).record(checkpoint_of(100))
    beside.blob("team/checkpoints/default/llama/README").upload_from_string(b"hands off")
    beside.blob("team/checkpoints/default/llama/2024-01-01_00-00.json").upload_from_string(b"{}")
    listing = await JobRecords(tier).listing(JOB)
    assert listing.checkpoints == ("2023-11-14_22-13", "2024-01-01_00-00")
    with pytest.raises(MalformedManifest, match="2024-01-01_00-00"):
        await JobRecords(tier).checkpoint(JOB, "2024-01-01_00-00")
    renamed = encode(checkpoint_of(100))
    beside.blob("team/checkpoints/default/llama/2024-01-01_00-00.json").upload_from_string(renamed)
    with pytest.raises(MalformedManifest, match="is the record of 2023-11-14_22-13"):
        await JobRecords(tier).checkpoint(JOB, "2024-01-01_00-00")


async def test_a_dropped_record_is_gone_and_its_snapshots_stay(tier: BucketTier) -> None:
    name = await complete(tier, 1, 100)
    await JobRecords(tier).drop(JOB, [name])
    await JobRecords(tier).drop(JOB, [name])
    listing = await JobRecords(tier).listing(JOB)
    assert (listing.checkpoints, set(listing.snapshots)) == ((), {SnapshotId(ZERO, 1), SnapshotId(ONE, 1)})
    with pytest.raises(NotFound, match=name):
        await JobRecords(tier).checkpoint(JOB, name)


async def test_a_person_names_the_checkpoint_to_restore_in_a_text_file(tier: BucketTier, beside: Any) -> None:
    await complete(tier, 1, 100)
    beside.blob("team/checkpoints/default/llama/restore.version").upload_from_string(b"2023-11-14_22-13\n")
    assert (await JobRecords(tier).listing(JOB)).forced == "2023-11-14_22-13"
    assert await JobRecords(tier).end_forced(await JobRecords(tier).listing(JOB))
    assert (await JobRecords(tier).listing(JOB)).forced is None
    beside.blob("team/checkpoints/default/llama/restore.version").upload_from_string(b"the good one")
    said = (await JobRecords(tier).listing(JOB)).forced
    with pytest.raises(MalformedManifest, match=r"restore\.version of .* says 'the good one'"):
        await JobRecords(tier).forced_checkpoint(JOB, said or "")
    with pytest.raises(NotFound, match=r"restore\.version of .* no such checkpoint"):
        await JobRecords(tier).forced_checkpoint(JOB, "2020-01-01_00-00")


async def test_a_snapshot_that_is_being_restored_is_so_for_everybody_until_the_end(
    tier: BucketTier, emulator: Emulator
) -> None:
    await complete(tier, 1, 100)
    other = BucketTier(URL, emulator.endpoint, patience=0.5)
    seen: list[frozenset[SnapshotId]] = []

    async def look() -> None:
        seen.append((await JobRecords(other).listing(JOB)).in_use)
        assert await JobRecords(other).restoring() == seen[-1]

    await JobRecords(tier).while_using(SnapshotId(ZERO, 1), look)
    await look()
    await other.aclose()
    assert seen == [{SnapshotId(ZERO, 1)}, frozenset()]


async def test_a_restore_that_ended_without_a_word_is_forgotten_in_time(
    tier: BucketTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tier.documents.create(f"{JOB}/in-use/0/1-{'0' * 16}", b"")
    assert (await JobRecords(tier).listing(JOB)).in_use == {SnapshotId(ZERO, 1)}
    monkeypatch.setattr("fuse_tier.replicate.records.USE_SECONDS", -10.0)
    listing = await JobRecords(tier).listing(JOB)
    assert listing.in_use == frozenset()
    await JobRecords(tier).forget_uses(listing)
    assert await tier.documents.listed() == ()


async def test_what_a_restore_reads_is_not_collected_though_its_snapshot_was_dropped(tier: BucketTier) -> None:
    records = JobRecords(tier)
    kept = await keep(tier, {"a": b"0123"}, 1)

    async def collect() -> int:
        return (await tier.collect_garbage(0, restoring=records.restoring)).freed

    async def restore() -> None:
        await tier.drop(kept.id)  # by a steward that had listed who restores before this one said so
        assert await collect() == 0
        assert await tier.missing(kept.blobs) == set()

    await records.while_using(kept.id, restore)
    assert await collect() == 4


async def test_work_that_uses_a_snapshot_raises_what_it_raises(tier: BucketTier) -> None:
    async def fail() -> None:
        raise Damaged("as it is, in no group")

    with pytest.raises(Damaged, match="as it is"):
        await JobRecords(tier).while_using(SnapshotId(ZERO, 1), fail)


async def test_every_job_with_a_snapshot_is_found(tier: BucketTier) -> None:
    await complete(tier, 1, 100)
    await keep(tier, {"a": b"b"}, 1, Identity("research", "gemma", "0"))
    assert await JobRecords(tier).every() == (JOB, Job("research", "gemma"))


async def test_the_newest_complete_checkpoint_is_restored_not_a_newer_part_of_one(
    tier: BucketTier, tmp_path: Path
) -> None:
    name = await complete(tier, 1, 100)
    await save_step(tier, ZERO, 2, 200)
    found = await restored(tier, tmp_path / "tree")
    assert (found.snapshot, found.checkpoint, found.newer) == (SnapshotId(ZERO, 1), name, (2,))
    assert (tmp_path / "tree/notes").read_text() == f"{ZERO} 100"
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


async def test_a_snapshot_a_version_or_a_step_can_be_named(tier: BucketTier, tmp_path: Path, beside: Any) -> None:
    names = {step: await complete(tier, number, step) for number, step in ((1, 100), (2, 200))}
    for target, wanted, number in (
        ("snapshot", {"snapshot": 1}, 1),
        ("version", {"version": names[100]}, 1),
        ("step", {"step": 100}, 1),
        ("newest", {}, 2),
    ):
        assert (await restored(tier, tmp_path / target, **wanted)).snapshot.number == number, target
    beside.blob("team/checkpoints/default/llama/restore.version").upload_from_string(names[100].encode())
    forced = await restored(tier, tmp_path / "forced")
    assert (forced.snapshot.number, forced.is_forced, forced.newer) == (1, True, ())


async def test_what_is_not_there_is_told_with_what_is(tier: BucketTier, tmp_path: Path) -> None:
    name = await complete(tier, 1, 100)
    for wanted, told in (
        ({"snapshot": 7}, "no snapshot 7 .* there are 1"),
        ({"version": "2020-01-01_00-00"}, f"no checkpoint 2020-01-01_00-00 .* there are {name}"),
        ({"step": 7}, f"no complete checkpoint of step 7 .* there are {name} .step 100"),
    ):
        with pytest.raises(NotFound, match=told):
            await restored(tier, tmp_path / "tree", **wanted)
    with pytest.raises(NotFound, match=r"no snapshot of default/llama/9; of default/llama there are 0, 1"):
        await restore_from_bucket(tier, Wanted(JOB.identity("9")), str(tmp_path / "tree"), Report())
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_left_when_a_file_is_damaged_and_nothing_is_overwritten(
    tier: BucketTier, tmp_path: Path, beside: Any
) -> None:
    await complete(tier, 1, 100)
    blob = hash_bytes(f"{ZERO} 100".encode())
    beside.blob("team/" + layout.blob_object(blob)).upload_from_string(b"x" * blob.size)
    with pytest.raises(Damaged, match=blob.name):
        await restored(tier, tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(MountError, match="not empty"):
        await restored(tier, tmp_path)
    assert (tmp_path / "mine").read_text() == "keep me"


async def test_the_command_needs_the_buckets_name_and_an_identity_only(
    tier: BucketTier, emulator: Emulator, tmp_path: Path
) -> None:
    await complete(tier, 1, 100)
    place = ("--bucket", URL, "--endpoint", emulator.endpoint)
    done = await run("restore", *place, "--identity", str(ZERO), "--to", str(tmp_path / "tree"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "snapshot 1 restored to" in done.stdout
    assert "checkpoint 2023-11-14_22-13" in done.stdout
    assert (tmp_path / "tree/notes").read_text() == f"{ZERO} 100"
    again = await run("restore", *place, "--identity", str(ZERO), "--to", str(tmp_path / "tree"))
    assert (again.returncode, again.stdout) == (1, "")
    assert "not empty" in again.stderr


async def test_the_command_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    target = ("--identity", str(ZERO), "--to", str(tmp_path / "tree"))
    for arguments in (("--endpoint", URL), ("--bucket", URL, "--snapshot", "1", "--step", "2")):
        done = await run("restore", *arguments, *target)
        assert done.returncode == 2, arguments


async def test_complete_checkpoints_are_listed_with_nothing_but_the_buckets_name_whatever_is_damaged_there(
    tier: BucketTier, emulator: Emulator, beside: Any
) -> None:
    first = await complete(tier, 1, 100)
    await save_step(tier, ZERO, 2, 200)
    place = ("--bucket", URL, "--endpoint", emulator.endpoint)
    shown = await run("ls", *place)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.search(rf"{first}\s+default/llama\s+llama\s+100\s.*0@1, 1@1", shown.stdout)
    (fact,) = json.loads((await run("ls", *place, "--json", str(ONE))).stdout)
    assert (fact["checkpoint"], fact["step"], fact["snapshots"]) == (first, 100, {"1": 1})
    second = await complete(tier, 3, 300)
    beside.blob(f"team/checkpoints/default/llama/{second}.json").upload_from_string(b"{}")
    damaged = await run("ls", *place)
    assert (damaged.returncode, first in damaged.stdout) == (1, True)
    assert f"checkpoint {second} of default/llama" in damaged.stderr
    assert "has no complete checkpoint of default/gemma/0" in (await run("ls", *place, "default/gemma/0")).stdout


async def test_somebody_who_looks_is_shown_how_far_it_has_come(
    tier: BucketTier, emulator: Emulator, tmp_path: Path
) -> None:
    await complete(tier, 1, 100)
    place = ("--bucket", URL, "--endpoint", emulator.endpoint)
    master, slave = pty.openpty()
    seen = b""
    try:
        arguments = ("restore", *place, "--identity", str(ZERO), "--to", str(tmp_path / "tree"))
        async with running(*arguments, stderr=slave, TERM="xterm", COLUMNS="120") as process:
            os.close(slave)
            with trio.fail_after(60):
                assert await process.wait() == 0
                seen = os.read(master, 1 << 16)
    finally:
        os.close(master)
    assert b"restoring default/llama/0@1" in seen or b"looking into gs://checkpoints/team" in seen
