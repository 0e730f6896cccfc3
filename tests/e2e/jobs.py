"""What end-to-end tests have in common: a job's files, and mounting them once a dead node is counted as gone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import trio

from fuse_tier.demo.checkpoint import Checkpoint
from fuse_tier.errors import IdentityBusy
from fuse_tier.identity import Identity
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.ram.layout import Layout

JOB = "default/llama/slice-0-3"

# What nodes rightly say when another has died: each a regular expression for an event's whole name.
A_NODE_DIED = (
    "copy.failed",
    r"membership\..*",
    "coordinator.node_gone",
    "bulk.stream_failed",
    "peer.refused",  # of who had a volume before, and was still copying
    "list.place_silent",
    "list.manifest_unreadable",
    "restore.manifest_unreadable",
    "restore.place_failed",
    "restore.newest_gone",
)
# What nodes rightly say of stored bytes that are not what they were.
DAMAGE = (r"blob\.damaged", r"restore\..*", r"ram\..*", r"content\..*", r"bulk\.stream_failed", r"verify\..*")
_GONE_SECONDS = 30


def checkpoint_of(step: int) -> Checkpoint:
    """A small checkpoint; each step's bytes are its own."""
    files = {f"step_{step}/rank_{rank}.bin": os.urandom((1 << 20) + rank) for rank in range(4)}
    files |= {f"step_{step}/empty": b"", f"step_{step}/meta/tree.json": b'{"layers": 4}', "latest": b"%d\n" % step}
    return Checkpoint(files, {f"step_{step}/first": "rank_0.bin"})


def save(checkpoint: Checkpoint, mount: Path) -> None:
    """Writes it as plain files."""
    for path, content in checkpoint.files.items():
        (mount / path).parent.mkdir(parents=True, exist_ok=True)
        (mount / path).write_bytes(content)
    for path, target in checkpoint.links.items():
        (mount / path).symlink_to(target)


async def mount_when_free(node: LocalNode, mount: Path, identity: str = JOB, **request: Any) -> dict[str, Any]:
    """Mounts as soon as the dead node no longer counts as the owner."""
    with trio.fail_after(_GONE_SECONDS):
        while True:
            try:
                return await node.mount(identity, mount, **request)
            except IdentityBusy:
                await trio.sleep(0.2)


async def without_a_copy(cluster: LocalCluster, *names: str) -> LocalNode:
    """One of these nodes that must fetch what it restores."""
    for name in names:
        if not any("ram" in snapshot.tiers for snapshot in await cluster[name].list(JOB)):
            return cluster[name]
    raise AssertionError("every node has a copy: replicas is 1")


def layout_of(node: LocalNode) -> Layout:
    """Where a node's RAM tier keeps what."""
    return Layout(str(node.ram_path))


def blobs_in(node: LocalNode) -> list[Path]:
    """All content in a node's RAM, as files."""
    return sorted(path for path in Path(layout_of(node).blobs).glob("*/*") if path.is_file())


def damage(path: Path) -> None:
    """Flips a byte in the middle, as memory does."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, size // 2)
        os.pwrite(fd, bytes([byte[0] ^ 1]), size // 2)
    finally:
        os.close(fd)


def volume_tree(node: LocalNode, identity: str = JOB) -> Path:
    """The live tree of a volume, below the mount."""
    return Path(layout_of(node).volume(Identity.parse(identity)).tree)
