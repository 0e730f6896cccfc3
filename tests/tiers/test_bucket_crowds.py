"""Many nodes and many objects: what the service lets nobody do often, and listings that are long."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from fuse_tier.emulator import Emulator
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers import bucket_listing
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.bucket_layout import blob_object
from fuse_tier.tiers.bucket_many import heads, mark_used
from fuse_tier.tiers.bucket_task import Task
from tests.harness.snapshots import holding, keep
from tests.tiers.conftest import Open
from tests.tiers.faulty_http import Fault, Proxy

NAME = blob_object(hash_bytes(b"0123"))


@pytest.fixture
def mark(emulator: Emulator) -> Callable[[], None]:
    """Marks the object as another node would."""

    def mark() -> None:
        client = storage.Client("tests", AnonymousCredentials(), client_options={"api_endpoint": emulator.endpoint})  # type: ignore[no-untyped-call]
        blob = client.bucket("checkpoints").blob(f"a/{NAME}")
        blob.metadata = {"fuse-tier-used": "2100-01-01T00:00:00+00:00"}
        blob.patch()
        client.close()

    return mark


async def test_a_mark_that_another_node_was_faster_with_serves_as_well(
    tier: BucketTier, proxy: Proxy, mark: Callable[[], None]
) -> None:
    await keep(tier, {"weights": b"0123"})
    (stored,) = heads(tier._objects, [NAME], Task(1)).values()
    proxy.requests.clear()
    proxy.faults += [
        Fault("POST", "/batch/", status=404, times=99),  # so that each call is a request of its own
        Fault("PATCH", "/o/", status=429, first=mark, times=99),
    ]
    assert mark_used(tier._objects, [stored], Task(1)) == [True]
    assert sum(request.startswith("PATCH") for request in proxy.requests) == 1


async def test_an_object_that_is_refused_a_mark_is_marked_later_unless_it_has_gone(
    tier: BucketTier, proxy: Proxy
) -> None:
    await keep(tier, {"weights": b"0123"})
    (stored,) = heads(tier._objects, [NAME], Task(1)).values()
    batches, patches = Fault("POST", "/batch/", status=404, times=99), Fault("PATCH", "/o/", status=429)
    proxy.faults += [batches, patches]
    assert mark_used(tier._objects, [stored], Task(5)) == [True]
    assert heads(tier._objects, [NAME], Task(1))[NAME].used > stored.used
    assert tier._objects.delete(stored)
    patches.times = 1
    assert mark_used(tier._objects, [stored], Task(5)) == [False]


async def test_who_comes_later_changes_nothing_that_all_share(opened: Open, proxy: Proxy) -> None:
    await keep(opened(), {"weights": b"0123"})
    proxy.requests.clear()
    await opened().store([hash_bytes(b"0123")], holding([b"0123"]))
    assert not [request for request in proxy.requests if request.startswith("POST /upload/")]


async def test_a_page_of_a_listing_that_fails_is_asked_for_again_and_not_those_before_it(
    tier: BucketTier, proxy: Proxy, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_listing, "PAGE", 10)
    names = sorted({f"n/w/{rng.randrange(10**9)}" for _ in range(30)})
    for name in names:
        await tier.documents.create(name, b"")
    proxy.requests.clear()
    proxy.faults += [Fault("GET", "startOffset=", status=503, times=1, spares=spares) for spares in (0, 1, 2)]
    assert [document.name for document in await tier.documents.listed("n/w/")] == names
    # Each page begins with the last name of the one before.
    pages = [request for request in proxy.requests if "/o?" in request]
    assert len(pages) == 4 + 3
