"""The driver's pod on this machine: its three containers, each with processes and mounts of its own.

A container has a mount namespace that shares one directory with the others, as host paths with propagation are
shared. Its processes are those of a PID namespace; or, with the machine's process numbers (``hostPID``), those of a
control group. Its end is the end of all of them. Needs root.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

import trio

from fuse_tier.errors import FuseTierError
from fuse_tier.localcluster.processes import Family, detach_mounts, kill_all
from fuse_tier.node.turns import VARIABLE

CONTAINERS: Final = ("csi", "fuse", "replication-worker")
CAPABILITIES: Final = {
    "csi": ("dac_override", "chown", "fowner", "linux_immutable"),
    "replication-worker": ("dac_override", "chown", "fowner", "fsetid", "lease", "mknod"),
}
"""What containers that are not privileged have; docs/csi.md says why."""
_WORKER: Final = "fuse_tier.replicate"
_PATIENCE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.01
_THROUGH: Final = (
    "unshare", "--pid", "--mount", "--propagation", "unchanged", "--fork", "--kill-child=KILL",
    "sh", "-c", 'mount --make-rprivate /proc && mount -t proc proc /proc && exec "$@"', "sh",
)  # fmt: skip


class Kind(Enum):
    """What the containers of a pod are made of."""

    NONE = "processes among this machine's: one's end is that of its worker, not of its mounts"
    NAMESPACED = "PID namespaces"
    HOST_PID = "control groups"


def control_groups() -> Path | None:
    """Where this machine's unified control groups are, if any."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    return None


@contextmanager
def shared_directory(directory: Path) -> Iterator[Path]:
    """Makes a directory one whose mounts all containers see, whoever makes them."""
    for arguments in (("--bind", str(directory), str(directory)), ("--make-shared", str(directory))):
        subprocess.run(["mount", *arguments], check=True)
    try:
        yield directory
    finally:
        detach_mounts(directory)


class DriverPod:
    """The containers of one pod of the driver; ``uid`` tells it from the one that it replaces."""

    def __init__(
        self, uid: str, config: Path, endpoint: str, kubelet: Path, logs: Path, kind: Kind = Kind.NAMESPACED
    ) -> None:
        self._kind = kind
        self._groups: dict[str, Path] = {}
        self.uid = uid
        node = ["-m", "fuse_tier.cli", "node", "--config", str(config), "--part"]
        plugin = ["-m", "csi.cli", "--config", str(config), "--endpoint", f"unix://{endpoint}"]
        commands = {
            "csi": [*plugin, "--kubelet", str(kubelet)],
            "fuse": [*node, "supervisor"],
            "replication-worker": [*node, "worker"],
        }
        self.families: dict[str, Family] = {}
        for name, command in commands.items():
            log = logs / f"{uid}-{name}.log"
            family = self.families[name] = Family(name, command, log, self._through(name, logs.parent.name))
            family.environment = {} if kind is Kind.NONE else {VARIABLE: uid}

    def _through(self, name: str, place: str) -> tuple[str, ...]:
        if self._kind is Kind.NONE:
            return ()
        capabilities = CAPABILITIES.get(name)
        bounds = () if capabilities is None else ("setpriv", f"--bounding-set=-all,+{',+'.join(capabilities)}")
        if self._kind is Kind.NAMESPACED:
            return (*_THROUGH, *bounds)
        groups = control_groups()
        if groups is None:
            raise FuseTierError("containers with the machine's process numbers need control groups (cgroup2)")
        group = self._groups[name] = groups / f"fuse-tier-local-{os.getpid()}-{place}-{self.uid}-{name}"
        group.mkdir()
        return ("sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh",
                "unshare", "--mount", "--cgroup", "--propagation", "unchanged", *bounds)  # fmt: skip

    def start(self, *names: str) -> None:
        """Starts containers; all of them, where none is named."""
        for name in names or CONTAINERS:
            self.families[name].start()

    async def kill(self, *names: str) -> None:
        """Ends containers at once, with all that runs in them; all at the same time, where none is named."""
        killed = [self.families[name] for name in names or CONTAINERS]
        if self._kind is Kind.NONE:
            async with trio.open_nursery() as nursery:
                for family in killed:
                    nursery.start_soon(family.behead, _WORKER)
            return
        if self._kind is Kind.NAMESPACED:
            await kill_all(killed)
            return
        for family in killed:
            (self._groups[family.name] / "cgroup.kill").write_text("1")
        for family in killed:
            await family.behead()
        with trio.fail_after(_PATIENCE_SECONDS):
            while any(self._populated(family.name) for family in killed):  # noqa: ASYNC110 - nobody announces it
                await trio.sleep(_POLL_SECONDS)

    def _populated(self, name: str) -> bool:
        return "populated 1" in (self._groups[name] / "cgroup.events").read_text()

    async def restart(self, *names: str) -> None:
        """Kills containers, and starts them again, as kubelet does."""
        await self.kill(*names)
        self.start(*names)

    def pids(self, name: str, module: str) -> set[int]:
        """The processes in a container that run a Python module."""
        return self.families[name].running(module)

    async def clean_up(self) -> None:
        """Ends all that still runs."""
        for family in self.families.values():
            if family.members():
                await family.kill()
        for group in self._groups.values():
            group.rmdir()
