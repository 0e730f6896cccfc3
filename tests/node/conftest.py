"""Nodes as processes with a worker that only stands in, and volumes to mount on them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fuse_tier.deadlines import Deadline
from fuse_tier.identity import Identity
from fuse_tier.ram.layout import Layout
from fuse_tier.wire.channel import connected
from tests.harness.logs import ExpectedLogs
from tests.harness.processes import is_running as is_running
from tests.harness.waiting import until
from tests.mount.conftest import mountpoint, place

__all__ = ["mountpoint", "place"]


def make_volume(ram_root: str, identity: Identity) -> None:
    """An empty volume, as a worker makes one before it is mounted."""
    volume = Layout(ram_root).volume(identity)
    for directory in (volume.tree, volume.pins, volume.remote):
        os.makedirs(directory)


@dataclass
class Node:
    """A node with a stand-in worker."""

    config: Path
    ram: str
    socket: str
    process: subprocess.Popen[str]

    @property
    def events(self) -> list[str]:
        """What happened to its workers."""
        path = self.config.with_suffix(".events")
        return path.read_text().splitlines() if path.exists() else []

    @property
    def workers(self) -> list[int]:
        """The pids of its workers, in the order of their starts."""
        return [int(event.split()[1]) for event in self.events if event.startswith("started")]

    def line(self) -> str:
        """The next line that it prints, but for what it says first when it runs as an ordinary user."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line.startswith("running without root"):
            line = self.process.stdout.readline()
        return line.rstrip()

    def tell(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it has ended."""

        async def has_ended() -> bool:
            return self.process.poll() is not None

        await until(has_ended)
        return self.process.returncode

    async def happened(self, event: str, times: int = 1) -> None:
        """Returns when something has happened to its workers so many times."""

        async def has_happened() -> bool:
            return len([line for line in self.events if re.match(event, line)]) >= times

        await until(has_happened)

    async def call(self, name: str, **arguments: Any) -> Any:
        """Asks its supervisor."""
        async with connected(f"{self.socket}.supervisor", {}) as channel:
            return await channel.call(name, Deadline.MOUNT, **arguments)


StartNode = Callable[..., Node]


@pytest.fixture
def start_node(place: Path, memory_path: Path, tmp_path: Path, expected_logs: ExpectedLogs) -> Iterator[StartNode]:
    """Starts a node; given a worker's mode and, where the usual ones won't do, a RAM tier and a socket.

    ``sizes`` are those that files are expected to have, ``keeper`` is a program to be run for each keeper, ``code`` a
    directory with the package to be run, ``more`` are further lines of the configuration.
    """
    with ExitStack() as stack:

        def start(
            mode: str = "steady",
            ram: str | None = None,
            socket: str | None = None,
            name: str = "a",
            sizes: str = "{}",
            keeper: str = "",
            code: Path | None = None,
            more: str = "",
        ) -> Node:
            number = len(list(place.glob("*.yaml")))
            config = place / f"node{number}.yaml"
            ram = ram or str(memory_path / "ram")
            socket = socket or str(place / f"{number}.sock")
            config.write_text(
                f"node: {name}\nram: {{path: {ram}, size: 64MiB, expectedSizes: {sizes}}}\nsocket: {socket}\n"
                f"listen: {{control: 127.0.0.1:7460, bulk: 127.0.0.1:7461}}\n{more}"
            )
            # Judged after the place has gone.
            log = tmp_path / f"node{number}.log"
            expected_logs.watch(log)
            command = [
                sys.executable,
                "-m",
                "tests.node.standin_node",
                mode,
                str(config),
                *([keeper] if keeper else []),
            ]
            with log.open("w") as stderr:
                process = stack.enter_context(
                    subprocess.Popen(
                        command,
                        stdout=subprocess.PIPE,
                        stderr=stderr,
                        text=True,
                        cwd=code,
                        env={**os.environ, "PYTHONPATH": str(code)} if code else None,
                    )
                )
            stack.callback(process.kill)
            return Node(config, ram, socket, process)

        yield start
