"""Stands in for a container runtime: containers of a pod as control groups, named as runtimes name them.

What runs in one is told from what runs in another by the kernel alone, as on a node of Kubernetes. A container's end
is the end of all of its processes, and of its group.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from csi.local.pod import control_groups

_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.01


@dataclass
class Container:
    """One life of one."""

    group: Path

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Begins a command in it, which the container's end ends."""
        enter = f'echo $$ >{self.group}/cgroup.procs && exec "$@"'
        return subprocess.Popen(["sh", "-c", enter, "sh", *command], stdin=subprocess.DEVNULL)

    async def run(self, program: str, *arguments: str, check: bool = True) -> str:
        """Runs a Python program in it to its end, and gives what it writes."""
        enter = f'echo $$ >{self.group}/cgroup.procs && exec "$@"'
        done = await trio.run_process(
            ["sh", "-c", enter, "sh", sys.executable, "-c", program, *arguments], capture_stdout=True, check=check
        )
        return str(done.stdout.decode())


@dataclass
class Pod:
    """A pod with one volume, and a container in it that lives until it is ended."""

    directory: Path
    groups: Path
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    _living: list[tuple[Container, subprocess.Popen[bytes]]] = field(default_factory=list)

    @property
    def mountpoint(self) -> Path:
        """Where kubelet has the volume mounted."""
        return self.directory / "pods" / self.uid / "volumes/kubernetes.io~csi/ckpt/mount"

    def container(self) -> Container:
        """Another one, with a process that does nothing."""
        group = self.groups / f"pod{self.uid}" / secrets.token_hex(32)
        group.mkdir(parents=True)
        container = Container(group)
        self._living.append((container, container.start("sleep", "infinity")))
        return container

    async def end(self, container: Container) -> None:
        """As a crash or a runtime ends it: none of its processes is left."""
        (found,) = [one for one in self._living if one[0] is container]
        self._living.remove(found)
        (container.group / "cgroup.kill").write_text("1")
        found[1].wait()
        with trio.fail_after(_PATIENCE_SECONDS):
            while True:
                with suppress(OSError):  # the kernel still takes its processes out of it
                    container.group.rmdir()
                    return
                await trio.sleep(_LOOK_SECONDS)

    def clean_up(self) -> None:
        """Ends all, whatever a test did."""
        for container, process in self._living:
            (container.group / "cgroup.kill").write_text("1")
            process.wait()


@contextmanager
def pods(directory: Path, count: int) -> Iterator[list[Pod]]:
    """Some pods; needs the mark ``cgroups``."""
    there = control_groups()
    assert there is not None, "mark the test with cgroups"
    groups = there / f"fuse-tier-test-{secrets.token_hex(4)}"
    made = [Pod(directory, groups) for _ in range(count)]
    try:
        yield made
    finally:
        for pod in made:
            pod.clean_up()
        for group in sorted(groups.rglob("*/"), key=lambda one: -len(one.parts)):
            if group.is_dir():
                group.rmdir()
        if groups.exists():
            groups.rmdir()
