"""An emulated bucket behind a proxy that makes faults, and the tier that reaches it that way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.tiers.bucket import BucketTier
from tests.tiers.faulty_http import Proxy, faulty

Open = Callable[[], BucketTier]
PATIENCE_SECONDS = 20.0  # with faults that pass by themselves, on a machine that is slow


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with running_emulator("checkpoints") as emulator:
        yield emulator


@pytest.fixture
def proxy(emulator: Emulator) -> Iterator[Proxy]:
    with faulty(emulator.endpoint) as proxy:
        yield proxy


@pytest.fixture
async def opened(proxy: Proxy) -> AsyncIterator[Open]:
    """Opens the bucket as often as one likes, each time as another node would."""
    tiers: list[BucketTier] = []

    def open_tier() -> BucketTier:
        tiers.append(BucketTier("gs://checkpoints/a", proxy.endpoint, patience=PATIENCE_SECONDS))
        return tiers[-1]

    yield open_tier
    for tier in tiers:
        await tier.aclose()


@pytest.fixture
def tier(opened: Open) -> BucketTier:
    return opened()
