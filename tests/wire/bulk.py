"""A bulk server on loopback, and what tests of the bulk plane do with it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from fuse_tier.blobs import Blob, Sink, Source
from fuse_tier.errors import TierRefused, TierUnavailable
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.memory import MemoryBlobs
from fuse_tier.wire.bulk.client import Grant, pull, push
from fuse_tier.wire.bulk.server import serve_bulk
from fuse_tier.wire.bulk.sessions import Direction, Session, Sessions
from fuse_tier.wire.bulk.transfer import Receipt
from fuse_tier.wire.tls import TlsFiles
from tests.harness.snapshots import holding
from tests.wire.certificates import Certificates, make_certificates

SIZES = (0, 1, 4096, 65_535, 65_536, 65_537, 262_144, 1 << 20, (1 << 20) + 1, (9 << 20) + 7)


@dataclass(slots=True)
class Server:
    """What listens, as tests see it."""

    address: str
    sessions: Sessions
    store: MemoryBlobs

    def grant(
        self,
        direction: Direction,
        blobs: Sequence[Blob],
        tls: TlsFiles | None = None,
        *,
        caller: str | None = None,
        encrypted: bool | None = None,
    ) -> Grant:
        """A session as the control call would grant it."""
        wanted = tls is not None if encrypted is None else encrypted
        caller = "a" if caller is None and tls is not None else caller
        return Grant(self.address, self.sessions.grant(Session(caller, direction, tuple(blobs), wanted)), tls)


@asynccontextmanager
async def running_server(
    tls: TlsFiles | None = None,
    *,
    max_streams: int = 8,
    max_strangers: int = 32,
    source: Source | None = None,
    sink: Sink | None = None,
) -> AsyncIterator[Server]:
    """Listens until the block ends."""
    store, sessions = MemoryBlobs(), Sessions()
    async with trio.open_nursery() as nursery:
        serving = partial(serve_bulk, max_streams=max_streams, max_strangers=max_strangers)
        port = await nursery.start(serving, "127.0.0.1:0", sessions, source or store, sink or store, tls)
        yield Server(f"127.0.0.1:{port}", sessions, store)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def secure(certificates: Certificates) -> AsyncIterator[Server]:
    async with running_server(certificates.b) as server:
        yield server


@pytest.fixture
def threads() -> trio.CapacityLimiter:
    return trio.CapacityLimiter(4)


def contents_of(sizes: Sequence[int], rng: random.Random) -> MemoryBlobs:
    return holding(rng.randbytes(size) for size in sizes)


async def send(server: Server, source: MemoryBlobs, tls: TlsFiles | None = None) -> Receipt:
    """Pushes everything of a source in one session."""
    blobs = list(source.contents)
    grant = server.grant(Direction.PUSH, blobs, tls)
    return await push(grant, blobs, source, no_progress, trio.CapacityLimiter(1))


async def receive(server: Server, blobs: Sequence[Blob], sink: MemoryBlobs, tls: TlsFiles | None = None) -> Receipt:
    """Pulls blobs in one session."""
    receipt = Receipt()
    grant = server.grant(Direction.PULL, blobs, tls)
    await pull(grant, blobs, sink, no_progress, trio.CapacityLimiter(1), receipt)
    return receipt


async def check_alive(server: Server) -> None:
    """It serves the next one as if nothing had happened."""
    source = holding([b"still alive"])
    assert (await send(server, source)).arrived == source.contents.keys()


async def outcome_of(call: Callable[[], object]) -> object:
    """What a call returns, or the error that it raises: errors do not leave a nursery as they are."""
    try:
        return await call()  # type: ignore[misc]
    except (TierUnavailable, TierRefused) as error:
        return error
