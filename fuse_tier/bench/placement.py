"""A thousand nodes in virtual time: what it takes to decide where copies belong when a slice is lost.

The coordinator's directory and the placement are the real ones; the nodes are tasks that report as nodes do, by
trio's clock, which a caller sets to jump.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import trio
from trio.testing import MockClock

from fuse_tier.bench.frame import RUNS, Figure, Row
from fuse_tier.coordinate.directory import Directory
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, LocalFacts, Report
from fuse_tier.replicate.placement import choose_all, volumes_of

_NODES = 1000
_SLICE = 64
_ZONES = 3
_COPIES = 1
_LEASE_SECONDS = 5.0
_LIMIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of a lost slice."""

    seconds: float  # of real time, from the coordinator's picture to all holders
    noticed_seconds: float  # of virtual time, from the last sign of life to the coordinator's verdict
    busiest: int  # copies on the node that has most
    mean: float  # copies on a node
    lost: int  # copies that were on the slice
    moved: int  # copies that have another place
    together: int  # copies in the slice of their own volume


async def lose_a_slice(nodes: int = _NODES, size: int = _SLICE, copies: int = _COPIES) -> Decision:
    """Runs so many nodes, loses the second slice of them, and decides anew. Under a mock clock."""
    directory = Directory(_LEASE_SECONDS, trio.current_time())
    lost_pool = "pool-1"
    async with trio.open_nursery() as nursery:
        scopes = {number: trio.CancelScope() for number in range(nodes)}
        for number, scope in scopes.items():
            nursery.start_soon(_report, directory, number, size, scope)
        nursery.start_soon(_expire, directory)
        await trio.sleep(2 * _LEASE_SECONDS)
        members = directory.nodes.members(trio.current_time())
        before = choose_all(volumes_of(members), members, copies)
        lost = {member.node for member in members if member.domain.pool == lost_pool}
        for number, scope in scopes.items():
            if _pool(number, size) == lost_pool:
                scope.cancel()
        since = trio.current_time()
        while any(member.alive for member in members if member.node in lost):
            await trio.sleep(_LEASE_SECONDS / 50)
            members = directory.nodes.members(trio.current_time())
        noticed = trio.current_time() - since
        begun = time.perf_counter()
        members = directory.nodes.members(trio.current_time())
        owners = volumes_of(members)
        after = choose_all(owners, members, copies)
        seconds = time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    pools = {member.node: member.domain.pool for member in members}
    load = Counter(node for holders in after.values() for node in holders)
    return Decision(
        seconds=seconds,
        noticed_seconds=noticed,
        busiest=max(load.values()),
        mean=sum(load.values()) / sum(member.alive for member in members),
        lost=sum(node in lost for holders in before.values() for node in holders),
        moved=sum(len({*holders} - {*after[identity]}) for identity, holders in before.items()),
        together=sum(
            pools[node] == owners[identity].domain.pool for identity, holders in after.items() for node in holders
        ),
    )


async def _report(directory: Directory, number: int, size: int, scope: trio.CancelScope) -> None:
    pool = _pool(number, size)
    facts = LocalFacts(64 << 30, 32 << 30, frozenset({Identity("default", "llama", str(number))}))
    domain = Domain(f"zone-{number // size % _ZONES}", pool, f"host-{number}")
    sequence = 0
    with scope:
        await trio.sleep(_LEASE_SECONDS / 5 * number / _NODES)  # never all at once
        while True:
            sequence += 1
            address = f"node-{number}"
            report = Report(address, f"life-{number}", sequence, f"{address}:1", f"{address}:2", facts, domain)
            directory.report(report, trio.current_time())
            await trio.sleep(_LEASE_SECONDS / 5)


async def _expire(directory: Directory) -> None:
    while True:
        directory.expire(trio.current_time())
        await trio.sleep(_LEASE_SECONDS / 10)


def _pool(number: int, size: int) -> str:
    return f"pool-{number // size}"


def _simulate() -> Decision:
    return trio.run(lose_a_slice, clock=MockClock(autojump_threshold=0))


async def _decisions() -> list[Decision]:
    return [await trio.to_thread.run_sync(_simulate) for _ in range(RUNS)]


async def _seconds_to_decide(directory: Path) -> Figure:
    return Figure(statistics.median(decision.seconds for decision in await _decisions()), _LIMIT_SECONDS)


async def _busiest_node(directory: Path) -> Figure:
    decision = await trio.to_thread.run_sync(_simulate)
    return Figure(decision.busiest, decision.mean)


ROWS = (
    Row("peer.placement", "s", "limit", _seconds_to_decide),
    Row("peer.placement.load", "copies", "the mean of all nodes", _busiest_node),
)
