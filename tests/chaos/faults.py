"""The faults: what happens to clusters. Each is done, lasts for a moment, and ends; what it leaves the driver mends.

No more nodes lose their RAM than copies can make up for: that is what the configuration promises, not more.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from fuse_tier import failpoints
from fuse_tier.localcluster import LocalNode, NotStarted
from tests.chaos.jobs import touching
from tests.chaos.world import World
from tests.harness import needs
from tests.harness.waiting import until

_WORKER = "fuse_tier.replicate"
_BRIEF_SECONDS = (0.5, 3.0)  # shorter and longer than a lease
_LEASE_ENDS_SECONDS = 60.0
_PIECE_BYTES = 1 << 16
# Where these jobs have marked places reached: they have no bucket, and each is a rank by itself that says nothing.
_PARTS_AT_WORK = ("snapshot", "copy", "content", "listing", "restore", "retention")

Fault = Callable[[World, LocalNode], Awaitable[None]]


async def kill_the_worker(world: World, node: LocalNode) -> None:
    """Its mounts go on; the supervisor starts another."""
    node.family.signal(node.family.running(_WORKER), signal.SIGKILL)
    await trio.sleep(world.rng.uniform(0, 1))


async def freeze_the_worker(world: World, node: LocalNode) -> None:
    """It neither answers nor ends."""
    workers = node.family.running(_WORKER)
    node.family.signal(workers, signal.SIGSTOP)
    await _a_moment(world)
    node.family.signal(workers, signal.SIGCONT)


async def kill_the_node(world: World, node: LocalNode) -> None:
    """All its processes die at once; its RAM stays."""
    await node.kill()
    await _a_moment(world)
    await node.start()


async def lose_the_node(world: World, node: LocalNode) -> None:
    """It dies with its RAM and comes back empty."""
    await _before_ram_is_lost(world)
    await node.lose_ram()
    await _a_moment(world)
    await node.start()


async def replace_the_node(world: World, node: LocalNode) -> None:
    """Another machine gets its name: other RAM, and other addresses."""
    await _before_ram_is_lost(world)
    await node.lose_ram()
    listen = {key: _next_port(address) for key, address in node.config["listen"].items()}

    async def starts() -> bool:
        try:
            await node.start(listen=listen)
        except NotStarted as refused:  # while the first of that name is still counted as alive
            world.note(str(refused).splitlines()[0])
            await node.kill()
        return node.family.runs

    await until(starts, _LEASE_ENDS_SECONDS)


async def restart_the_node(world: World, node: LocalNode) -> None:
    """An orderly end and a new start."""
    for job in world.jobs:
        if job.node is node:
            await job.move(world)
    await node.stop()
    await node.start()


async def freeze_the_node(world: World, node: LocalNode) -> None:
    """All its processes stop for a moment; its job may be started elsewhere meanwhile."""
    node.family.freeze()
    await _move_or_wait(world, node)
    await _a_moment(world)
    node.family.thaw()


async def cut_it_off(world: World, node: LocalNode) -> None:
    """Nothing gets in or out; its job may be started elsewhere meanwhile."""
    world.network.cut(node.name)
    left_behind = await _move_or_wait(world, node)
    async with trio.open_nursery() as nursery:
        for mount in left_behind:
            nursery.start_soon(_go_on_saving, mount)
        await trio.sleep(2 * max(_BRIEF_SECONDS) if left_behind else world.rng.uniform(*_BRIEF_SECONDS))
        nursery.cancel_scope.cancel()
    world.network.heal(node.name)


async def cut_one_way(world: World, node: LocalNode) -> None:
    """What it sends to another node or to the coordinator gets lost."""
    other = world.rng.choice([name for name in world.network.hosts if name != node.name])
    world.network.cut_one_way(node.name, other)
    await _a_moment(world)
    world.network.heal(node.name)


async def slow_it_down(world: World, node: LocalNode) -> None:
    """A link of a megabit."""
    world.network.slow(node.name, "1mbit")
    await _a_moment(world)
    world.network.heal(node.name)


async def lose_packets(world: World, node: LocalNode) -> None:
    """A bad link."""
    world.network.lose(node.name)
    await _a_moment(world)
    world.network.heal(node.name)


async def fill_it_up(world: World, node: LocalNode) -> None:
    """Somebody else's file takes all of the RAM tier."""
    filler = Path(node.ram_path) / "filler"
    with filler.open("wb") as file:
        try:
            for offset in itertools.count(0, _PIECE_BYTES):  # others take room meanwhile
                os.posix_fallocate(file.fileno(), offset, _PIECE_BYTES)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    await _a_moment(world)
    filler.unlink()


async def move_its_clock(world: World, node: LocalNode) -> None:
    """It starts again with a clock that is a day off, and so it goes on."""
    library = needs.faketime()
    assert library is not None
    await node.kill()
    if "LD_PRELOAD" not in node.family.environment:
        days = world.rng.choice(("-1d", "+1d"))
        node.family.environment |= {"LD_PRELOAD": library, "FAKETIME": days, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    else:
        for name in ("LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"):
            node.family.environment.pop(name, None)
    await node.start()


async def fail_at_a_point(world: World, node: LocalNode) -> None:
    """Its worker ends, stops or fails at a marked place."""
    name = world.rng.choice(sorted(one for one in failpoints.NAMES if one.split(".")[0] in _PARTS_AT_WORK))
    action = world.rng.choice(sorted(failpoints.ACTIONS))
    armed = Path(node.family.environment[failpoints.VARIABLE])
    failpoints.arm(str(armed), name, action)
    with trio.move_on_after(3):
        await until(partial(_is_gone, armed))
    fired = not armed.exists()
    armed.unlink(missing_ok=True)
    world.note(f"failpoint {name} {action} on {node.name}: {'fired' if fired else 'not reached'}")
    if fired:
        world.faults[f"failpoint {action}"] += 1
    if action == "stop":
        await _a_moment(world)
        node.family.thaw()


async def kill_the_coordinator(world: World, node: LocalNode) -> None:
    """It comes back knowing nothing."""
    assert world.cluster.coordinator
    async with world.coordinators_turn:
        await world.cluster.coordinator.kill()
        await _a_moment(world)
        await world.cluster.coordinator.start()


async def freeze_the_coordinator(world: World, node: LocalNode) -> None:
    """It comes back thinking that no time has passed."""
    assert world.cluster.coordinator
    async with world.coordinators_turn:
        world.cluster.coordinator.family.freeze()
        await _a_moment(world)
        world.cluster.coordinator.family.thaw()


FAULTS: tuple[Fault, ...] = (
    kill_the_worker,
    freeze_the_worker,
    kill_the_node,
    lose_the_node,
    replace_the_node,
    restart_the_node,
    freeze_the_node,
    cut_it_off,
    cut_one_way,
    slow_it_down,
    lose_packets,
    fill_it_up,
    move_its_clock,
    fail_at_a_point,
    fail_at_a_point,
    fail_at_a_point,
    kill_the_coordinator,
    freeze_the_coordinator,
)
LEFT_OUT = {move_its_clock.__name__: reason} if (reason := needs.missing("faketime")) else {}
POSSIBLE = tuple(fault for fault in FAULTS if fault.__name__ not in LEFT_OUT)


async def inflict(world: World, fault: Fault) -> None:
    """One fault on a node drawn; others take place elsewhere meanwhile."""
    node = world.rng.choice(world.healthy())
    world.faults[fault.__name__] += 1
    world.note(f"{fault.__name__} {node.name}")
    world.amid_content += world.receives_large_content()
    world.sick.add(node.name)
    try:
        await fault(world, node)
    finally:
        world.sick.discard(node.name)
    await world.tidy()


async def _is_gone(path: Path) -> bool:
    return not path.exists()


async def _a_moment(world: World) -> None:
    await trio.sleep(world.rng.uniform(*_BRIEF_SECONDS))


async def _go_on_saving(mount: Path) -> None:
    """A job that does not know that it was started elsewhere: it saves faster than the other."""
    for number in itertools.count():
        with suppress(OSError, trio.TooSlowError):
            await touching((mount / f"left behind {number}").mkdir)
        await trio.sleep(0.1)


async def _move_or_wait(world: World, node: LocalNode) -> list[Path]:
    left_behind = []
    for job in world.jobs:
        if job.node is node and world.rng.random() < 0.5:
            world.note(f"{job.identity} is started elsewhere")
            left_behind += [job.mount] if job.mount else []
            await job.move(world)
    return left_behind


async def _before_ram_is_lost(world: World) -> None:
    if not world.may_lose:
        await world.converge()
    world.may_lose -= 1


def _next_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}"
