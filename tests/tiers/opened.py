"""A bucket that tests may look into beside the tier, by a client of their own. Modules import the fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from fuse_tier.blobs import Blob
from fuse_tier.emulator import Emulator
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.memory import MemoryBlobs

BUCKET = "checkpoints"
PREFIX = "team/run 7/größe/"
PATIENCE = 0.5  # seconds


class OpenedTier(BucketTier):
    """A tier that lets tests see the bucket beside it, by a client of their own."""

    def __init__(self, url: str, endpoint: str) -> None:
        super().__init__(url, endpoint, patience=PATIENCE)
        options = {"api_endpoint": endpoint}
        self.client = storage.Client("tests", AnonymousCredentials(), client_options=options)  # type: ignore[no-untyped-call]
        self.bucket: Any = self.client.bucket(BUCKET)

    async def aclose(self) -> None:
        self.client.close()
        await super().aclose()

    def put(self, name: str, content: bytes) -> None:
        self.bucket.blob(PREFIX + name).upload_from_string(content)

    def names(self, folder: str = "") -> list[str]:
        return [blob.name.removeprefix(PREFIX) for blob in self.client.list_blobs(BUCKET, prefix=PREFIX + folder)]


Open = Callable[[], OpenedTier]


@pytest.fixture
async def opened(emulator: Emulator) -> AsyncIterator[Open]:
    """Opens the bucket as often as one likes, each time as another process would."""
    tiers: list[OpenedTier] = []

    def open_tier() -> OpenedTier:
        tiers.append(OpenedTier(f"gs://{BUCKET}/{PREFIX}", emulator.endpoint))
        return tiers[-1]

    yield open_tier
    for tier in tiers:
        await tier.aclose()


@pytest.fixture
def tier(opened: Open) -> OpenedTier:
    return opened()


async def fetched(tier: BucketTier, *blobs: Blob) -> dict[Blob, bytes]:
    sink = MemoryBlobs()
    await tier.fetch(blobs, sink)
    return sink.contents
