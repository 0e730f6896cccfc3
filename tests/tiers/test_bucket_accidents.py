"""Processes that die while they work with a bucket, clocks that are wrong, and texts that are too new."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import MalformedManifest
from fuse_tier.hashing import hash_bytes
from fuse_tier.manifest import encode
from fuse_tier.tiers import bucket_claims, bucket_session, bucket_store
from fuse_tier.tiers import bucket_layout as layout
from fuse_tier.tiers import bucket_presence as presence
from fuse_tier.tiers.bucket import SAFE_GRACE_SECONDS
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.memory import MemoryBlobs
from tests.harness.snapshots import check_producible, holding, keep, manifest_of
from tests.tiers.conftest import Open
from tests.tiers.faulty_http import Fault, Proxy

BACKUP = """
import random, sys
import trio
from fuse_tier.tiers import bucket_claims, bucket_parts
from fuse_tier.tiers.bucket import BucketTier
from tests.harness.snapshots import keep
bucket_claims.STALE_SECONDS = 0.0
bucket_parts.PART, bucket_parts.SPLIT_FROM = 64 << 10, 256 << 10
rng = random.Random(sys.argv[2])
files = {"large": rng.randbytes(600_000)} | {f"{number}": rng.randbytes(2_000) for number in range(100)}
files |= {f"mid-{number}": rng.randbytes(100_000) for number in range(3)}
trio.run(keep, BucketTier("gs://checkpoints/a", sys.argv[1]), files, int(sys.argv[3]))
"""


class Doomed:
    """A process that backs up, and is killed when it has made so many requests and waits for the next answer."""

    def __init__(self, proxy: Proxy, at: int, seed: int, number: int) -> None:
        self._proxy = proxy
        self._skip = at
        self._arguments = [proxy.endpoint, str(seed), str(number)]
        self.was_killed = False

    async def run(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", BACKUP, *self._arguments], env=environment, stdout=subprocess.DEVNULL
        )

        def kill() -> None:
            self._skip -= 1
            if self._skip < 0 and not self.was_killed:
                self.was_killed = True
                process.send_signal(signal.SIGKILL)

        self._proxy.faults[:] = [
            Fault(method, "/", first=kill, times=1000) for method in ("GET", "POST", "PATCH", "DELETE")
        ]
        await process.wait()
        self._proxy.faults.clear()


async def test_whatever_a_process_was_doing_when_it_was_killed_the_next_one_completes_it(
    opened: Open, proxy: Proxy, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_claims, "STALE_SECONDS", 0.0)
    seed, tier = rng.getrandbits(32), opened()
    killed = 0
    for at in (1, 3, 6, 10, 15, 22):
        doomed = Doomed(proxy, at, seed, at)
        await doomed.run()
        killed += doomed.was_killed
        await check_producible(tier)
        if at == 10:
            await opened().collect(0)
            await check_producible(tier)
    assert killed >= 4
    survivor = Doomed(proxy, 10_000, seed, 100)
    await survivor.run()
    snapshots = list(await opened().snapshots())
    assert [snapshot.number for snapshot in snapshots][-1] == 100
    await check_producible(opened())
    await tier.drop_all(snapshots)
    await opened().collect(0)
    assert [stored.name for stored in tier._objects.listed("", Task(1).stop)] == ["fuse-tier.json"]


async def test_a_manifest_of_a_newer_version_is_refused_with_that_word_and_nothing_is_collected(
    opened: Open,
) -> None:
    tier = opened()
    first = await keep(tier, {"weights": b"0123"}, 1)
    newer = encode(manifest_of({"weights": b"4567"}, 2)).replace(b'"fuse_tier_manifest":1', b'"fuse_tier_manifest":2')
    body = newer[: newer.rindex(b'{"xxh3_128"')]
    text = body + b'{"xxh3_128":"' + hash_bytes(body).digest.hex().encode() + b'"}\n'
    snapshot = manifest_of({}, 2).id
    tier._objects.put(layout.manifest_object(snapshot), MemoryContent(text), 0, lambda _: None, Task(1).stop)
    with pytest.raises(MalformedManifest, match="newer version"):
        await tier.manifest(snapshot)
    await tier.drop(first.id)
    with pytest.raises(MalformedManifest, match=r"nothing is collected.*newer version"):
        await opened().collect(0)
    assert "newer version" in (await opened().verify()).damaged[0]


@pytest.mark.parametrize("ahead", [-90_000.0, 90_000.0])
async def test_a_clock_that_is_a_day_wrong_makes_nothing_old_or_young(
    opened: Open, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time

    class Wrong:
        """The clock of this machine."""

        @staticmethod
        def time() -> float:
            return right() + ahead

    monkeypatch.setattr(bucket_session, "time", Wrong)
    tier, manifest = opened(), manifest_of({"weights": b"0123"})
    await tier.store(manifest.blobs, holding([b"0123"]))
    assert await opened().collect(SAFE_GRACE_SECONDS) == 0
    await tier.commit(manifest)
    await check_producible(opened())


@pytest.mark.parametrize("ahead", [-90_000.0, 90_000.0])
async def test_a_claim_is_judged_by_the_service_s_clock(
    opened: Open, proxy: Proxy, ahead: float, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_claims, "STALE_SECONDS", 0.5)
    right = time.time

    class Wrong:
        """The clock of this machine."""

        @staticmethod
        def time() -> float:
            return right() + ahead

    monkeypatch.setattr(bucket_session, "time", Wrong)
    content, gone, tier = rng.randbytes(2 << 20), opened(), opened()
    await keep(gone, {})
    await bucket_claims.Claims(gone._objects, gone._work).take(hash_bytes(content))
    await tier.store([hash_bytes(content)], holding([content]))
    sink = MemoryBlobs()
    await tier.fetch([hash_bytes(content)], sink)
    assert sink.contents == {hash_bytes(content): content}


async def test_what_came_early_in_a_long_upload_is_kept_young_until_it_is_named(
    opened: Open, proxy: Proxy, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "RELIANCE_SECONDS", 0.2)
    monkeypatch.setattr(bucket_store, "_LOOK_AGAIN_SECONDS", 0.1)
    tier, early, late = opened(), rng.randbytes(700_000), rng.randbytes(300_000)
    manifest = manifest_of({"early": early, "late": late}, 2)
    await keep(tier, {})
    looked_again = trio.Event()
    token = trio.lowlevel.current_trio_token()
    stall = Fault("POST", "/upload/", first=lambda: trio.from_thread.run(looked_again.wait, trio_token=token))
    proxy.faults += [Fault("POST", "/upload/"), stall]  # the larger one goes first

    async def watch() -> None:
        begun = len(proxy.requests)
        while sum("/batch/" in request for request in proxy.requests[begun:]) < 6:
            await trio.lowlevel.checkpoint()
        looked_again.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(tier.store, manifest.blobs, holding([early, late]))
    stored = tier._objects.head(layout.blob_object(hash_bytes(early)))
    assert stored is not None
    assert stored.used > stored.created
    await tier.commit(manifest)
