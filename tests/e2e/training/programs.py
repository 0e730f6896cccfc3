"""The example programs as processes: run to their end, or killed in the middle of a save.

They are given a directory and nothing else. All that a test knows of them is what anybody sees in that directory
and what they print.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from tests.harness.waiting import until

_EXAMPLES = Path(__file__).parents[3] / "examples"
# One thread for the arithmetic: sums are added up in one order only.
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
_RUN_SECONDS = 120.0
_LOOK_SECONDS = 0.002
# By now there is content, not only the names and descriptions that come before it.
_SOME_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Program:
    """An example; how its saves look (prefix and step when complete, a suffix before); what it may warn of."""

    script: str
    prefix: str
    unfinished_suffix: str
    remarks: str = ""  # a regular expression for a whole line

    def complete(self, directory: Path) -> list[int]:
        """The steps with their final names, oldest first."""
        return self._steps(directory, "")

    def unfinished(self, directory: Path) -> list[int]:
        """The steps being saved, or left over from a save that never ended."""
        return self._steps(directory, self.unfinished_suffix)

    def unfinished_bytes(self, directory: Path) -> int:
        """What is in the files of unfinished saves."""
        steps = self.unfinished(directory)
        return sum(_bytes_below(directory / f"{self.prefix}{step}{self.unfinished_suffix}") for step in steps)

    def _steps(self, directory: Path, suffix: str) -> list[int]:
        pattern = re.compile(f"{re.escape(self.prefix)}([0-9]+){re.escape(suffix)}")
        return sorted(int(found[1]) for name in os.listdir(directory) if (found := pattern.fullmatch(name)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program that ran to its end said: where it started, the digest of all parameters, what was wrong."""

    start: int
    digest: str
    complaints: tuple[str, ...]


class Training:
    """A program that runs. Made by ``running``."""

    def __init__(self, program: Program, directory: Path, output: Path) -> None:
        self._program = program
        self._directory = directory
        self._output = output
        self._complaints = output.with_suffix(".err")
        with self._output.open("wb") as out, self._complaints.open("wb") as complaints:
            self._process = subprocess.Popen(
                [sys.executable, str(_EXAMPLES / program.script), str(directory)],
                env=os.environ | _ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=complaints,
                start_new_session=True,
            )

    async def outcome(self) -> Outcome:
        """Returns when it has ended. Fails the test unless it ended well."""
        await until(self._has_ended, _RUN_SECONDS)
        start = re.search(r"^start at step (\d+)$", self._said(), re.MULTILINE)
        end = re.search(r"^end at step \d+: sha256 ([0-9a-f]{64})$", self._said(), re.MULTILINE)
        if self._process.returncode or not start or not end:
            self._fail(f"ended with status {self._process.returncode}")
        lines = self._complaints.read_text().splitlines()
        complaints = tuple(line for line in lines if not re.fullmatch(self._program.remarks, line))
        return Outcome(int(start[1]), end[1], complaints)

    async def kill_in_the_middle_of_a_save(self, make_durable: Callable[[], Awaitable[None]]) -> int:
        """Kills it (SIGKILL) while it saves a step; gives the newest step that was complete, and durable, before.

        The process stands still (SIGSTOP) while ``make_durable`` is called, and again while it is made sure that
        the step being saved is not complete. If it is, for the save was quicker than the signal, the next will do.
        """
        with trio.fail_after(_RUN_SECONDS):
            while True:
                await self._until(lambda: bool(self._complete()))
                await self._stand_still()
                newest = self._complete()[-1]
                await make_durable()
                self._go_on()
                await self._until(lambda: self._unfinished_bytes() >= _SOME_BYTES)
                await self._stand_still()
                if self._complete()[-1] == newest and self._unfinished_bytes():
                    await self.kill()
                    return newest
                self._go_on()

    async def kill(self) -> None:
        """Kills it, if it runs, and returns when it is gone."""
        if self._process.poll() is None:
            self._process.kill()
            await until(self._has_ended)

    async def _until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            if self._process.poll() is not None:
                self._fail("ended before it was killed")
            await trio.sleep(_LOOK_SECONDS)

    async def _stand_still(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        await until(self._stands_still)

    async def _stands_still(self) -> bool:
        if self._process.poll() is not None:
            self._fail("ended before it was killed")
        # The state follows the name, which is in parentheses: proc_pid_stat(5). T when all threads are stopped.
        threads = Path(f"/proc/{self._process.pid}/task").iterdir()
        return all((thread / "stat").read_text().rpartition(") ")[2].startswith("T") for thread in threads)

    def _complete(self) -> list[int]:
        return self._program.complete(self._directory)

    def _unfinished_bytes(self) -> int:
        return self._program.unfinished_bytes(self._directory)

    def _go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def _has_ended(self) -> bool:
        return self._process.poll() is not None

    def _said(self) -> str:
        return self._output.read_text()

    def _fail(self, what: str) -> NoReturn:
        pytest.fail(f"{self._program.script} {what}:\n{self._said()}{self._complaints.read_text()}", pytrace=False)


@asynccontextmanager
async def running(program: Program, directory: Path, output: Path) -> AsyncIterator[Training]:
    """The program with that directory, its words in the file ``output``; killed when this is left."""
    training = Training(program, directory, output)
    try:
        yield training
    finally:
        with trio.CancelScope(shield=True):
            await training.kill()


async def run_to_the_end(program: Program, directory: Path, output: Path) -> Outcome:
    """Runs it; fails the test unless it ends well."""
    directory.mkdir(exist_ok=True)
    async with running(program, directory, output) as training:
        return await training.outcome()


def _bytes_below(top: Path) -> int:
    total = 0
    for parent, _, files in os.walk(top):
        for name in files:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # renamed since it was listed
                continue
    return total
