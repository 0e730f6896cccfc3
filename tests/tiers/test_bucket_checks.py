"""Content that arrived changed, in a process that dies before it has seen that."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from fuse_tier import failpoints
from fuse_tier.hashing import hash_bytes
from fuse_tier.manifest import Manifest
from fuse_tier.tiers import bucket_claims
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.bucket_layout import blob_object
from tests.harness.logs import ExpectedLogs
from tests.harness.snapshots import check_producible, holding, keep, manifest_of
from tests.tiers.conftest import Open
from tests.tiers.faulty_http import Fault, Proxy

BACKUP = """
import random, sys
import trio
from fuse_tier.tiers.bucket import BucketTier
from tests.harness.snapshots import keep
from tests.tiers.test_bucket_checks import files_of
trio.run(keep, BucketTier("gs://checkpoints/a", sys.argv[1]), files_of(sys.argv[2], int(sys.argv[3])))
"""
UPLOAD = "/upload/"


def files_of(kind: str, seed: int) -> dict[str, bytes]:
    rng = random.Random(seed)
    match kind:
        case "streamed":
            return {"weights": rng.randbytes(5 << 20)}
        case "small":
            return {"weights": rng.randbytes(300_000)}
        case _:
            return {f"{number}": rng.randbytes(2_000) for number in range(100)}


async def back_up_and_die(proxy: Proxy, kind: str, seed: int, directory: Path, *, change: bool) -> Manifest:
    """Has a process back up and end when its content was answered, before it has looked at the answer."""
    armed = directory / "failpoint"
    before = 1 if kind == "streamed" else 0  # a claim on what takes long
    fault = Fault("POST", UPLOAD, first=lambda: failpoints.arm(str(armed), "bucket.answered", "kill"), spares=before)
    fault.change_request = change
    proxy.faults.append(fault)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), failpoints.VARIABLE: str(armed)}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", BACKUP, proxy.endpoint, kind, str(seed)], env=environment, stdout=subprocess.DEVNULL
    )
    assert await process.wait() == -9
    assert not fault.times
    return manifest_of(files_of(kind, seed))


@pytest.fixture
async def tier(opened: Open, monkeypatch: pytest.MonkeyPatch) -> BucketTier:
    """A bucket that is in use already."""
    monkeypatch.setattr(bucket_claims, "STALE_SECONDS", 0.0)
    tier = opened()
    await keep(tier, {}, 7)
    return tier


@pytest.mark.parametrize("kind", ["streamed", "small", "packed"])
async def test_what_nobody_has_compared_is_not_relied_upon_and_gives_way_to_what_is_right(
    tier: BucketTier, proxy: Proxy, kind: str, rng: random.Random, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    seed = rng.getrandbits(32)
    manifest = await back_up_and_die(proxy, kind, seed, tmp_path, change=True)
    assert await tier.missing(manifest.blobs) == manifest.blobs
    expected_logs.allow("bucket.object.replaced")
    expected_logs.allow("bucket.pack.unreadable")  # the change may be in its directory
    await keep(tier, files_of(kind, seed))
    await check_producible(tier)
    assert (await tier.verify()).damaged == ()


@pytest.mark.parametrize("kind", ["streamed", "small"])
async def test_what_arrived_right_is_compared_and_not_sent_again(
    tier: BucketTier, opened: Open, proxy: Proxy, kind: str, rng: random.Random, tmp_path: Path
) -> None:
    seed = rng.getrandbits(32)
    manifest = await back_up_and_die(proxy, kind, seed, tmp_path, change=False)
    before = proxy.sent
    await keep(tier, files_of(kind, seed))
    assert proxy.sent - before < manifest.size // 10
    assert await opened().missing(manifest.blobs) == set()
    await check_producible(tier)


async def test_many_uploads_are_marked_by_one_request(opened: Open, proxy: Proxy, rng: random.Random) -> None:
    contents = [rng.randbytes(300_000) for _ in range(20)]
    tier = opened()
    await keep(tier, {})
    before = len(proxy.requests)
    await tier.store([hash_bytes(content) for content in contents], holding(contents))
    requests = proxy.requests[before:]
    assert sum(UPLOAD in request for request in requests) == len(contents)
    assert sum("/batch/" in request for request in requests) == 2  # what is there, and what was compared


@pytest.mark.parametrize(("size", "is_marked"), [(300_000, False), (5 << 20, True)])
async def test_a_service_that_compares_what_it_is_told_ahead_is_trusted_with_that(
    opened: Open, proxy: Proxy, rng: random.Random, size: int, is_marked: bool
) -> None:
    tier, content = opened(), rng.randbytes(size)
    await keep(tier, {})
    tier._session.is_cloud_storage = True
    before = len(proxy.requests)
    await tier.store([hash_bytes(content)], holding([content]))
    stored = tier._objects.head(blob_object(hash_bytes(content)))
    assert stored is not None
    assert stored.is_checked
    # Of what is streamed also a look whether somebody was faster, and the release of its claim.
    assert sum("/batch/" in request for request in proxy.requests[before:-1]) == (4 if is_marked else 1)
