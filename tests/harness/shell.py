"""Runs commands as somebody types them, and keeps what was typed and printed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import trio

_DEADLINE_SECONDS = 600


@dataclass
class Shell:
    """In one directory; ``kubectl`` is that of the tests, and finds its cluster."""

    directory: Path
    kubeconfig: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    transcript: list[str] = field(default_factory=list)

    async def run(self, line: str) -> str:
        """Gives what it prints. Fails the test when the command does."""
        found = await self.attempt(line)
        assert found.returncode == 0, (line, found.stdout, found.stderr)
        return found.stdout

    async def refused(self, line: str) -> str:
        """The same for a command that must fail; gives what it says on stderr."""
        found = await self.attempt(line)
        assert found.returncode != 0, (line, found.stdout, found.stderr)
        return found.stderr

    async def attempt(self, line: str) -> subprocess.CompletedProcess[str]:
        """Whatever comes of it."""
        # As from a shell: a make below another one, which may run these tests, talks otherwise.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        if self.kubeconfig is not None:
            environment["KUBECONFIG"] = str(self.kubeconfig)
        found: subprocess.CompletedProcess[str] = await trio.to_thread.run_sync(
            lambda: subprocess.run(
                ["bash", "-c", line],
                cwd=self.directory,
                env=environment | self.variables,
                capture_output=True,
                text=True,
                check=False,
                timeout=_DEADLINE_SECONDS,
            )
        )
        self.transcript.append(f"$ {line}\n{found.stdout}{found.stderr}".rstrip())
        return found
