"""A peer's content in sessions of limited size, over as many streams at once as its link needs.

A lost stream costs little: what arrived whole counts, of what was under way the beginning is kept by the
receiver, and the session's rest is tried again at once, a few times. Knows nothing of what a transfer is: that is
its caller's function.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import FuseTierError, TierError, TierRefused
from fuse_tier.wire.bulk.format import MAX_SESSION_BLOBS
from fuse_tier.wire.bulk.streams import HandshakeFailed, StreamBroken
from fuse_tier.wire.bulk.transfer import Receipt

Transfer = Callable[[Sequence[Blob], Receipt], Awaitable[bool]]
"""Moves the blobs of one session, and notes what became of each; whether there was anything to move."""

_SESSION_BYTES = 256 << 20
_FEWEST_STREAMS = 2
_MOST_STREAMS = 8  # with one peer
_MORE_IS_FASTER = 1.10  # by so much, or another stream is not worth its thread
_MEASURED_AT_LEAST = 64 << 20  # bytes: less says nothing about a link
_BREAKS_IN_A_ROW = 4  # that are gone on from at once


class Lanes:
    """How many streams a peer's link needs: another is added for as long as that makes the whole faster.

    Use from one trio thread. A lane is taken for the time of one session.
    """

    def __init__(self) -> None:
        self.wanted = _FEWEST_STREAMS
        self._turns = trio.CapacityLimiter(_FEWEST_STREAMS)
        self._best = 0.0  # bytes a second, with fewer streams than now
        self._settled = False

    @property
    def turns(self) -> trio.CapacityLimiter:
        """Taken before a session is opened, which must begin soon then."""
        return self._turns

    def measured(self, size: int, seconds: float) -> None:
        """A transfer of so many bytes, with all the lanes in use, took so long."""
        if self._settled or size < _MEASURED_AT_LEAST or seconds <= 0:
            return
        rate = size / seconds
        if rate < self._best * _MORE_IS_FASTER:
            self._settled = True
            self.wanted = max(_FEWEST_STREAMS, self.wanted - 1)
        elif self.wanted < _MOST_STREAMS:
            self._best = rate
            self.wanted += 1
        self._turns.total_tokens = self.wanted


@dataclass(slots=True)
class Patience:
    """With breaks, of all sessions of one errand; it comes back with each session that ends well."""

    left: int = _BREAKS_IN_A_ROW


async def run_sessions(
    blobs: Sequence[Blob], transfer: Transfer, lanes: Lanes, patience: Patience
) -> tuple[Receipt, TierError | None]:
    """Runs ``transfer`` for batches in order; gives what became of each blob, and an error if it became of all."""
    whole = Receipt()
    broken: list[TierError] = []
    waiting = batches(blobs)
    began, used = trio.current_time(), lanes.wanted

    async def work() -> None:
        for batch in waiting:
            async with lanes.turns:
                receipt, error = await _run_session(batch, transfer, patience)
            if error is not None:
                broken.append(error)
            whole.arrived |= receipt.arrived
            whole.failed |= receipt.failed
            whole.torn |= receipt.torn

    async with trio.open_nursery() as nursery:
        for _ in range(used):
            nursery.start_soon(work)
    if broken and not whole.arrived and all(error in broken for error in whole.failed.values()):
        return whole, broken[0]
    if not broken and sum(1 for _ in batches(blobs)) > used:
        lanes.measured(sum(blob.size for blob in whole.arrived), trio.current_time() - began)
    return whole, None


async def _run_session(
    batch: Sequence[Blob], transfer: Transfer, patience: Patience
) -> tuple[Receipt, TierError | None]:
    whole = Receipt()
    rest = batch
    while True:
        receipt, error = Receipt(), None
        try:
            if await transfer(rest, receipt):
                patience.left = _BREAKS_IN_A_ROW
        except FuseTierError as raised:
            error = raised if isinstance(raised, TierError) else TierRefused(str(raised))
        whole.arrived |= receipt.arrived
        whole.failed |= receipt.failed
        whole.torn |= receipt.torn
        if error is None:
            return whole, None
        rest = tuple(blob for blob in rest if blob not in whole.arrived and blob not in whole.failed)
        patience.left -= 1
        is_worth_it = isinstance(error, StreamBroken) and not isinstance(error, HandshakeFailed)
        if not rest or patience.left < 0 or not is_worth_it:
            whole.failed |= dict.fromkeys(rest, error)
            return whole, error


def largest_first(blobs: Collection[Blob]) -> list[Blob]:
    """Each once: large ones go in sessions nearly alone then, so that streams end at about the same time."""
    return sorted(set(blobs), key=lambda blob: (-blob.size, blob.digest))


def batches(blobs: Sequence[Blob]) -> Iterator[tuple[Blob, ...]]:
    """Blobs in sessions, in the order in which they are given."""
    batch: list[Blob] = []
    size = 0
    for blob in blobs:
        if batch and (len(batch) == MAX_SESSION_BLOBS or size + blob.size > _SESSION_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(blob)
        size += blob.size
    if batch:
        yield tuple(batch)
