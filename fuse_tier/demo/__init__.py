"""``fuse-tier demo``: a checkpoint survives its node, and then all nodes, before the reader's eyes.

Three nodes, a coordinator and an emulated bucket on this machine, as real processes. Nothing of it is left
afterwards, whether it succeeds, fails or is interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio
from rich.console import Console

from fuse_tier.demo.checkpoint import Checkpoint, make_checkpoint, verify_checkpoint, write_checkpoint
from fuse_tier.demo.narration import Narration, Ongoing, Row
from fuse_tier.errors import FuseTierError, IdentityBusy
from fuse_tier.localcluster import LocalCluster, LocalNode, in_directory, local_cluster

__all__ = ["Row", "demo", "run_demo"]

IDENTITY = "default/demo/rank-0"
_WAIT_SECONDS = 120.0
_GONE_SECONDS = 30.0  # until the coordinator counts a silent node as gone: its lease, and some more
_RETRY_SECONDS = 0.2


async def run_demo(console: Console, *, json: bool = False) -> int:
    """Runs it and prints it: a table to ``console``, or JSON to stdout. Raises FuseTierError."""
    narration = Narration(console)
    begun = time.perf_counter()
    await in_directory("fuse-tier-demo-", partial(demo, narration))
    if json:
        sys.stdout.write(narration.as_json() + "\n")
    else:
        console.print(narration.table())
        narration.say(f"Every byte came back twice, in {time.perf_counter() - begun:.0f} s. Nothing of this is left.")
    return 0


async def demo(narration: Narration, directory: Path) -> None:
    """Runs it all, with a cluster below ``directory``."""
    if os.geteuid() != 0:
        narration.say("Running as an ordinary user: RAM tiers under /dev/shm, mounts by fusermount3, no passthrough.")
    checkpoint = await trio.to_thread.run_sync(make_checkpoint)
    begun = time.perf_counter()
    async with local_cluster(directory) as cluster:
        narration.rows.append(Row("start", "3 nodes, coordinator, bucket", seconds=time.perf_counter() - begun))
        narration.say(f"Nodes a, b and c, a coordinator and an emulated bucket run, below {directory}")
        first = cluster["a"]
        mount = cluster.mountpoint("a")
        await _mount(narration, "mount", first, mount)
        await _save(narration, checkpoint, first, mount)
        with narration.step("lose node a") as step:
            await first.lose_ram()
            step.what = "processes killed, RAM gone"
        second = await _without_copy(cluster, "b", "c")
        await _come_back(narration, "restore", checkpoint, second, cluster.mountpoint("again"))
        with narration.step("lose all nodes") as step:
            await cluster.lose_all_ram()
            async with trio.open_nursery() as nursery:
                for node in cluster:
                    nursery.start_soon(node.start)
            step.what = "RAM gone, nodes started anew"
        await _come_back(narration, "restore", checkpoint, cluster["c"], cluster.mountpoint("at-last"))


async def _save(narration: Narration, checkpoint: Checkpoint, node: LocalNode, mount: Path) -> None:
    with narration.step("write") as step:
        await trio.to_thread.run_sync(write_checkpoint, checkpoint, mount)
        step.what = f"{len(checkpoint.files)} plain files, marker last"
        step.bytes = checkpoint.size
    closed = time.perf_counter()
    with narration.step("seal") as step:
        await node.wait(IDENTITY, "ram", _WAIT_SECONDS, step.follow)
        step.what = f"state {_state(mount)}"
    for name, tier, what in (("copy", "peer", "to a peer's RAM"), ("back up", "bucket", "to the bucket")):
        with narration.step(name) as step:
            await node.wait(IDENTITY, tier, _WAIT_SECONDS, step.follow)
            step.seconds = time.perf_counter() - closed  # from the last close, settling included
            step.bytes = checkpoint.size
            step.what = f"{what}: state {_state(mount)}"


async def _come_back(narration: Narration, name: str, checkpoint: Checkpoint, node: LocalNode, mount: Path) -> None:
    await _mount(narration, name, node, mount)
    with narration.step("verify") as step:
        await trio.to_thread.run_sync(verify_checkpoint, checkpoint, mount)
        step.what = f"{len(checkpoint.files)} files read and compared"
        step.bytes = checkpoint.size
        step.verified = True


async def _mount(narration: Narration, name: str, node: LocalNode, mount: Path) -> None:
    begun = time.perf_counter()
    with narration.step(name) as step:
        facts = await _mount_when_free(node, mount, step)
        step.what = f"{IDENTITY} on {node.name}"
        if restored := facts["restored"]:
            mounted = time.perf_counter()
            step.what = f"on {node.name}, mounted after {mounted - begun:.1f} s"
            step.source, step.bytes = str(restored["from"]), int(restored["bytes"])
            await node.wait(IDENTITY, "ram", _WAIT_SECONDS, step.follow)  # what is large comes after the mount
            step.seconds = float(restored["seconds"]) + time.perf_counter() - mounted


async def _mount_when_free(node: LocalNode, mount: Path, step: Ongoing) -> dict[str, Any]:
    """A node that died still counts as the identity's owner until its lease has run out."""
    with trio.move_on_after(_GONE_SECONDS):
        while True:
            try:
                return await node.mount(IDENTITY, mount, step.follow)
            except IdentityBusy:
                await trio.sleep(_RETRY_SECONDS)
    raise FuseTierError(f"{IDENTITY} still counts as mounted on a dead node after {_GONE_SECONDS:g} s")


async def _without_copy(cluster: LocalCluster, *names: str) -> LocalNode:
    """A node that holds no copy itself, so that a peer has to give it."""
    for name in names:
        snapshots = await cluster[name].list(IDENTITY)
        if not any("ram" in snapshot.tiers for snapshot in snapshots):
            return cluster[name]
    return cluster[names[0]]


def _state(mount: Path) -> str:
    return os.getxattr(mount / "latest", "user.fuse_tier.state").decode()
