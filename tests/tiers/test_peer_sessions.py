"""How many streams a peer's link gets, and what is done when one breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import InvalidRequest, TierError, TierRefused, TierUnavailable
from fuse_tier.hashing import hash_bytes
from fuse_tier.tiers.peer_sessions import Lanes, Patience, run_sessions
from fuse_tier.wire.bulk.streams import HandshakeFailed, StreamBroken
from fuse_tier.wire.bulk.transfer import Receipt

GB = 1_000_000_000
BLOBS = [hash_bytes(bytes([number])) for number in range(5)]


def measure(lanes: Lanes, rate_of: Callable[[int], float], times: int = 20) -> int:
    """Transfers of 1 GB over a link that gives so many bytes a second to so many streams."""
    for _ in range(times):
        lanes.measured(GB, GB / rate_of(lanes.wanted))
    return lanes.wanted


@pytest.mark.parametrize(
    ("rate_of", "streams"),
    [
        (lambda streams: 10 * GB, 2),  # two fill it
        (lambda streams: min(streams, 4) * GB, 4),  # as encryption, of which each stream does a core's worth
        (lambda streams: streams * GB, 8),  # there is an end to it
        (lambda streams: GB / streams, 2),  # more of them are in each other's way
    ],
    ids=["fast", "four cores", "huge", "crowded"],
)
def test_a_link_gets_as_many_streams_as_make_it_faster(rate_of: Callable[[int], float], streams: int) -> None:
    lanes = Lanes()
    assert measure(lanes, rate_of) == streams
    assert lanes.turns.total_tokens == streams


def test_transfers_that_are_small_or_took_no_time_say_nothing_of_a_link() -> None:
    lanes = Lanes()
    before = lanes.wanted
    lanes.measured(1 << 20, 0.001)
    lanes.measured(GB, 0.0)
    assert lanes.wanted == before


class Peer:
    """Fails as it is told, then takes all."""

    def __init__(self, *failures: TierError | InvalidRequest, arrives_before: int = 0) -> None:
        self.failures = list(failures)
        self.arrives_before = arrives_before
        self.asked: list[Sequence[Blob]] = []

    async def transfer(self, batch: Sequence[Blob], receipt: Receipt) -> bool:
        await trio.lowlevel.checkpoint()
        self.asked.append(batch)
        if self.failures:
            receipt.arrived.update(batch[: self.arrives_before])
            raise self.failures.pop(0)
        receipt.arrived.update(batch)
        return True


async def bring(peer: Peer) -> tuple[Receipt, TierError | None]:
    return await run_sessions(BLOBS, peer.transfer, Lanes(), Patience())


async def test_after_a_break_the_rest_is_tried_again_at_once() -> None:
    peer = Peer(StreamBroken("cut"), StreamBroken("cut"), arrives_before=2)
    receipt, lost = await bring(peer)
    assert (receipt.arrived, receipt.failed, lost) == (set(BLOBS), {}, None)
    assert [len(batch) for batch in peer.asked] == [5, 3, 1]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (TierUnavailable("nobody answers"), TierUnavailable),
        (HandshakeFailed("its certificate was refused"), HandshakeFailed),
        (TierRefused("no"), TierRefused),
        (InvalidRequest("it makes no sense"), TierRefused),
    ],
)
async def test_what_another_try_would_not_change_is_not_tried_again(
    failure: TierError | InvalidRequest, kind: type[TierError]
) -> None:
    peer = Peer(failure)
    receipt, lost = await bring(peer)
    assert isinstance(lost, kind)
    assert receipt.failed.keys() == set(BLOBS)
    assert len(peer.asked) == 1


async def test_breaks_without_end_are_given_up() -> None:
    peer = Peer(*[StreamBroken("cut")] * 100)
    _, lost = await bring(peer)
    assert isinstance(lost, StreamBroken)
    assert len(peer.asked) < 10
