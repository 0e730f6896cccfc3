"""The processes of a node's mount, as a benchmark sees them from outside."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fuse_tier.bench.nodes import IDENTITY
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity
from fuse_tier.localcluster import LocalNode
from fuse_tier.ram.layout import Layout

_PROGRAM = b"fuse_tier.fs"


def tree_of(node: LocalNode) -> Path:
    """Where the content of its volume stands. Raises FuseTierError."""
    return Path(Layout(str(node.ram_path)).volume(Identity.parse(IDENTITY)).tree)


def daemon_of(node: LocalNode) -> int:
    """The process that serves its mount, which is a child of its keeper. Raises FuseTierError between two."""
    serving = {pid for pid in node.family.members() if _runs_mount(pid)}
    for pid in serving:
        if (parent := _parent(pid)) in serving and parent != pid:
            return pid
    raise FuseTierError(f"node {node.name} has no daemon for {IDENTITY}: see {node.log_path}")


def resident_megabytes(pid: int) -> float:
    """The memory that a process has resident, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise FuseTierError(f"process {pid} has ended")


def _runs_mount(pid: int) -> bool:
    with suppress(OSError):
        return _PROGRAM in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return 0
