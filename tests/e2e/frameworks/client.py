"""A training job's side of the file protocol, step for step as the public clients do it, without a framework."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
import yaml

from tests.harness.waiting import until

_MARKER = re.compile(r"(?P<job>.+)-s(?P<step>[0-9]+)-n(?P<node>[0-9]+)-w(?P<worker>[0-9]+)\.restore")


class Failed(Exception):
    """The job must end: ``replicator.failed`` was there."""


def order(node_rank: int, nodes: int, **changes: Any) -> dict[str, Any]:
    """The keys as Orbax writes them; ``changes`` have underscores for dashes, None takes a key away."""
    keys: dict[str, Any] = {
        "job-name": "llama",
        "framework": "orbax",
        "assume-data-parallelism": 1,
        "node-rank": node_rank,
        "nodes": nodes,
        "peer-ranks": [],
        "backup-interval-minutes": 30,
    }
    keys |= {key.replace("_", "-"): value for key, value in changes.items()}
    return {key: value for key, value in keys.items() if value is not None}


class Client:
    """One worker of a job, at its node's mount."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self.remarks = ""
        self.seen: list[frozenset[str]] = []  # the names at the root when the order had just vanished

    async def start(self, keys: dict[str, Any] | str, rename: Callable[[int], str] = str) -> int | None:
        """Asks, and waits for the answer; gives the step of the directory that it was given, None for none."""
        await self.order(keys)
        return await self.take(rename)

    async def order(self, keys: dict[str, Any] | str) -> None:
        """Writes the order, and waits until it is accepted. Raises Failed."""
        await until(self._no_order)
        text = keys if isinstance(keys, str) else yaml.safe_dump(keys)
        await trio.to_thread.run_sync((self.mount / "replicator.yaml.tmp").write_text, text)
        os.replace(self.mount / "replicator.yaml.tmp", self.mount / "replicator.yaml")
        await until(self._no_order)
        self.seen.append(frozenset(os.listdir(self.mount)))
        self.look_for_errors()

    async def _no_order(self) -> bool:
        return not (self.mount / "replicator.yaml").exists()

    def look_for_errors(self) -> None:
        """Reads and removes what the replicator has to say. Raises Failed."""
        for name in ("replicator.errors", "replicator.failed"):
            path = self.mount / name
            if path.exists():
                text = path.read_text()
                path.unlink()
                if name == "replicator.failed":
                    raise Failed(text)
                self.remarks += text

    async def take(self, rename: Callable[[int], str] = str) -> int | None:
        """Waits for the markers, and gives the newest its place as the client does."""
        await until(self._marked)
        found = {int(self._read(path.name)["step"]): path for path in self.mount.glob("*.restore")}
        step, path = max(found.items())
        if path.is_file():
            assert step == 0
            path.unlink()
            return None
        os.replace(path, self.mount / rename(step))
        return step

    async def _marked(self) -> bool:
        self.look_for_errors()
        return bool(list(self.mount.glob("*.restore")))

    @staticmethod
    def _read(name: str) -> re.Match[str]:
        found = _MARKER.fullmatch(name)
        assert found, f"Orbax dies of {name!r}"
        return found

    def save(self, step: int, content: bytes) -> None:
        """Saves as Orbax does: under a temporary name, which is renamed when all is there."""
        temporary = self.mount / f"{step}.orbax-checkpoint-tmp"
        (temporary / "state").mkdir(parents=True)
        (temporary / "state/weights").write_bytes(content)
        (temporary / "commit_success.txt").touch()
        temporary.rename(self.mount / str(step))

    def steps(self) -> list[int]:
        """As Orbax looks for them: whatever has a name of digits."""
        return sorted(int(name) for name in os.listdir(self.mount) if name.isdigit())

    def prerestore(self) -> Any:
        """What a PyTorch job reads before its data is there."""
        return yaml.safe_load((self.mount / "replicator.prerestore").read_text())
