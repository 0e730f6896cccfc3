"""The driver's pod on this machine: its three containers, each with processes and mounts of its own.

A container is a PID namespace, whose end is the end of all that runs in it, and a mount namespace that shares one
directory with the others, as host paths with propagation are shared. Needs root.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from fuse_tier.localcluster.processes import Family, detach_mounts
from fuse_tier.node.turns import VARIABLE

CONTAINERS: Final = ("csi", "fuse", "replication-worker")
_WORKER: Final = "fuse_tier.replicate"
_PATIENCE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.01
_THROUGH: Final = (
    "unshare", "--pid", "--mount", "--propagation", "unchanged", "--fork", "--kill-child=KILL",
    "sh", "-c", 'mount --make-rprivate /proc && mount -t proc proc /proc && exec "$@"', "sh",
)  # fmt: skip


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
    """The containers of one pod of the driver; ``uid`` tells it from the one that it replaces.

    Not ``contained``, they are processes among this machine's: one's end is that of its worker, not of its mounts.
    """

    def __init__(
        self, uid: str, config: Path, endpoint: str, kubelet: Path, logs: Path, *, contained: bool = True
    ) -> None:
        self._contained = contained
        self.uid = uid
        node = ["-m", "fuse_tier.cli", "node", "--config", str(config), "--part"]
        plugin = ["-m", "csi.cli", "--config", str(config), "--endpoint", f"unix://{endpoint}"]
        through = _THROUGH if contained else ()
        commands = {
            "csi": [*plugin, "--kubelet", str(kubelet)],
            "fuse": [*node, "supervisor"],
            "replication-worker": [*node, "worker"],
        }
        self.families: dict[str, Family] = {}
        for name, command in commands.items():
            family = self.families[name] = Family(name, command, logs / f"{uid}-{name}.log", through)
            family.environment = {VARIABLE: uid}

    def start(self, *names: str) -> None:
        """Starts containers; all of them, where none is named."""
        for name in names or CONTAINERS:
            self.families[name].start()

    async def kill(self, *names: str) -> None:
        """Ends containers at once, with all that runs in them; all at the same time, where none is named."""
        killed = [self.families[name] for name in names or CONTAINERS]
        if not self._contained:
            async with trio.open_nursery() as nursery:
                for family in killed:
                    nursery.start_soon(family.behead, _WORKER)
            return
        members = {family.name: family.members() for family in killed}
        for family in killed:
            await family.behead()
        with trio.fail_after(_PATIENCE_SECONDS):
            while any(_runs(pid) for pids in members.values() for pid in pids):  # noqa: ASYNC110
                await trio.sleep(_POLL_SECONDS)

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


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
