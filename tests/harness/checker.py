"""The invariant, checked on a live cluster: whatever a tier lists, it can produce.

Twice: from outside, by reading the RAM tiers' files without any of the driver's code but the manifest's
decoder; and through ``fuse-tier verify`` on each node, which reaches the bucket and the peers too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fuse_tier.hashing import hash_descriptor
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.manifest import decode
from fuse_tier.ram.layout import Layout


async def check_all_listed_restores(cluster: LocalCluster) -> None:
    """Fails the test when a node that runs lists a snapshot of which a byte is missing or wrong."""
    broken: list[str] = []
    for node in cluster:
        if not node.family.runs:
            continue
        broken += broken_in_ram(Layout(str(node.ram_path)), node.name)
        broken += await _broken_by_verify(node)
    if broken:
        pytest.fail("listed, but cannot be restored:\n" + "\n".join(f"  {line}" for line in broken), pytrace=False)


def broken_in_ram(layout: Layout, node: str) -> list[str]:
    """What is wrong with the snapshots that a RAM tier lists; one line each."""
    broken = []
    for snapshot in listed(layout):
        try:
            manifest = decode(Path(layout.manifest(snapshot)).read_bytes())
        except FileNotFoundError:  # dropped since it was listed
            continue
        for blob in sorted(manifest.blobs):
            try:
                fd = os.open(layout.blob(blob), os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                if Path(layout.manifest(snapshot)).exists():
                    broken.append(f"{node}: {snapshot} lacks {blob}")
                continue
            try:
                found = hash_descriptor(fd)
            finally:
                os.close(fd)
            if found != blob:
                broken.append(f"{node}: {snapshot} has {found} in place of {blob}")
    return broken


def listed(layout: Layout) -> list[SnapshotId]:
    """All snapshots of a RAM tier, by the names of its files."""
    top = Path(layout.manifests)
    return sorted(
        SnapshotId(Identity(*path.parent.relative_to(top).parts), int(path.name))
        for path in top.glob("*/*/*/*")
        if path.name.isdigit()
    )


async def _broken_by_verify(node: LocalNode) -> list[str]:
    done = await node.cli("verify", "--json")
    if done.returncode == 0:
        return []
    if not done.stdout:
        return [f"{node.name}: verify failed: {done.stderr.strip()}"]
    return [
        f"{node.name}: {entry['place']}: {damage}"
        for entry in json.loads(done.stdout)["tiers"]
        for damage in entry["damaged"]
        if not damage.startswith("not verified: ")  # a node that has died, and that this one still counts on
    ]
