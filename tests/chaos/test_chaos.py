"""Chaos: five nodes, three jobs that save, faults drawn from a list. Nothing that was acknowledged is ever lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier import failpoints
from tests.chaos.faults import LEFT_OUT, POSSIBLE, Fault, inflict
from tests.chaos.jobs import Job
from tests.chaos.world import REPLICAS, World
from tests.harness import needs
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.network import network
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.namespaces]

_NODES = ("a", "b", "c", "d", "e")
_JOBS = 3
_LARGE_BYTES = 32 << 20  # what is broken off in the middle of this is kept, and goes on from there
_LARGE_KEPT_STEPS = 3
_BULK = "400Mbps"  # so that something is on its way most of the time
_AT_ONCE = 2
# Whatever a node has to say of faults, but no defect: those come with a traceback, or under these names.
_SAID_OF_FAULTS = r"(?!volume\.task_failed)[a-z_]+\.[a-z_.]+"
_SAID_BY_ONE_OF_A_TAKEN_NAME = ("fuse-tier: two nodes are called .*", "fuse-tier: the node could not start: .*")


@pytest.mark.timeout(240)
async def test_twenty_faults_lose_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs, rng: random.Random, tmp_path: Path
) -> None:
    await _survive(20, make_cluster, expected_logs, rng, tmp_path)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_two_hundred_faults_lose_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs, rng: random.Random, tmp_path: Path
) -> None:
    await _survive(200, make_cluster, expected_logs, rng, tmp_path, to_the_last_part=True)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_after_each_fault_by_itself_all_is_again_as_it_is_configured(
    make_cluster: Clusters, expected_logs: ExpectedLogs, rng: random.Random, tmp_path: Path
) -> None:
    each = dict.fromkeys(POSSIBLE)
    await _survive(0, make_cluster, expected_logs, rng, tmp_path, one_by_one=each, to_the_last_part=True)


@pytest.mark.faketime
def test_a_node_can_be_given_another_clock() -> None:
    """Else one fault is left out of the others: this test is skipped then, or fails, for all to see."""
    library = needs.faketime()
    assert library is not None
    told = subprocess.run(
        ["date", "+%s"],
        env={**os.environ, "LD_PRELOAD": library, "FAKETIME": "+1d"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) > time.time() + 12 * 3600


async def _survive(
    faults: int,
    make_cluster: Clusters,
    expected_logs: ExpectedLogs,
    rng: random.Random,
    tmp_path: Path,
    *,
    one_by_one: Iterable[Fault] = (),
    to_the_last_part: bool = False,
) -> None:
    expected_logs.allow(_SAID_OF_FAULTS, *_SAID_BY_ONE_OF_A_TAKEN_NAME)
    async with _world(make_cluster, rng) as world:
        try:
            await _play(world, faults, one_by_one)
            await _verify(world, tmp_path)
            if to_the_last_part:
                await world.until_no_part_of_a_blob_stays(large=True)
        except BaseException:
            world.note(f"at the end: {world.picture()}")
            (tmp_path / "events.txt").write_text("\n".join(world.events))
            sys.stdout.write("\n".join(world.events[-400:]) + "\n")
            raise


@asynccontextmanager
async def _world(make_cluster: Clusters, rng: random.Random) -> AsyncIterator[World]:
    with network([*_NODES, "coordinator"]) as wires:
        cluster = await make_cluster(
            *_NODES,
            hosts=wires.hosts,
            bucket=False,
            start=False,
            ram_size="512MiB",
            replicas=REPLICAS,
            settle=0.05,
            drain=5.0,
        )
        assert cluster.coordinator
        cluster.coordinator.config["lease"] = 2.0
        for node in cluster:
            node.config["limits"] = {"bulk": _BULK}
            node.family.environment[failpoints.VARIABLE] = str(node.directory / "failpoint")
            if rng.random() < 0.5:
                node.config["restoreAtOnce"] = "0"  # content comes behind the mount, however little it is
        await cluster.start()
        jobs = [Job(f"default/job/{number}") for number in range(_JOBS - 1)]
        jobs.append(Job(f"default/job/{_JOBS - 1}", _LARGE_BYTES, _LARGE_KEPT_STEPS))
        yield World(cluster, wires, rng, jobs)
        await cluster.clean_up()


async def _play(world: World, faults: int, one_by_one: Iterable[Fault]) -> None:
    async with trio.open_nursery() as nursery:
        for job in world.jobs:
            nursery.start_soon(job.run, world)
        await until(partial(_all_have_saved, world), 60)
        for fault in one_by_one:
            await inflict(world, fault)
            await _check_all_is_well(world)
        async with trio.open_nursery() as lanes:
            drawn = iter(_draw(world.rng, faults))
            for _ in range(_AT_ONCE):
                lanes.start_soon(_inflict_all, world, drawn)
        nursery.cancel_scope.cancel()


def _draw(rng: random.Random, count: int) -> list[Fault]:
    """Faults in a random order, in which each comes about equally often."""
    drawn: list[Fault] = []
    while len(drawn) < count:
        drawn += rng.sample(POSSIBLE, len(POSSIBLE))
    return drawn[:count]


async def _inflict_all(world: World, faults: Iterator[Fault]) -> None:
    for fault in faults:
        await inflict(world, fault)


async def _all_have_saved(world: World) -> bool:
    return all(job.acknowledged for job in world.jobs)


async def _check_all_is_well(world: World) -> None:
    """As many copies as are configured, none listed that is not there, and no part of one left."""
    await world.converge()
    assert world.broken() == []
    await world.until_no_part_of_a_blob_stays()


async def _verify(world: World, place: Path) -> None:
    await _check_all_is_well(world)
    read = 0
    for job in world.jobs:
        before = job.verified
        for node in world.cluster:
            tree = place / "restored"
            await node.restore(job.identity, tree)
            job.check(tree)
            shutil.rmtree(tree)
        read += (job.verified - before) // len(world.cluster.nodes)
    figures = {
        "faults": world.faults.total(),
        "by kind": dict(world.faults),
        "left out": LEFT_OUT,
        "in the middle of large content": world.amid_content,
        "acknowledged": world.acknowledged,
        "kept": sum(len(job.acknowledged) for job in world.jobs),
        "verified": read,
        "restores": sum(job.restores for job in world.jobs),
        "lost": 0,
        "seconds to converge": [round(seconds, 1) for seconds in world.convergences],
        "seconds": round(trio.current_time() - world.begun, 1),
    }
    sys.stdout.write(f"\n{json.dumps(figures)}\n")
