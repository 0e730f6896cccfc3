"""A job that changes its files while they are hashed and copied: what snapshots say of them was so once."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.harness.logs import ExpectedLogs
from tests.harness.mapping import mapped

pytestmark = [pytest.mark.fuse]

_OPERATIONS = 200
_MOST_OPERATIONS = 5000
_NAMES = [f"file{number}" for number in range(6)]


def content(version: int, size: int) -> bytes:
    """Tells of itself whether it is whole: its first line says how the rest must be."""
    head = b"%08d %d\n" % (version, size)
    return head + (b"%08d" % version) * (size // 8)


def is_whole(text: bytes) -> bool:
    head, _, rest = text.partition(b"\n")
    version, size = map(int, head.split())
    return rest == (b"%08d" % version) * (size // 8)


class Job:
    """Leaves each file whole whenever nobody has it open for writing."""

    def __init__(self, mount: Path, rng: random.Random) -> None:
        self._mount = mount
        self._rng = rng
        self._version = 0

    def next_content(self) -> bytes:
        self._version += 1
        return content(self._version, self._rng.choice([80, 8_000, 800_000, 4_000_000]))

    def step(self) -> None:
        path = self._mount / self._rng.choice(_NAMES)
        other = self._mount / self._rng.choice(_NAMES)
        operation = self._rng.choice(
            [
                *(self.rewrite, self.overwrite, self.write_through_memory, self.grow_and_cut),
                *(self.replace, self.link, self.move, self.remove),
            ]
        )
        with suppress(FileNotFoundError, FileExistsError):
            operation(path, other)

    def rewrite(self, path: Path, other: Path) -> None:
        path.write_bytes(self.next_content())

    def overwrite(self, path: Path, other: Path) -> None:
        text = self.next_content()
        with path.open("r+b", buffering=0) as file:
            middle = len(text) // 2
            file.write(text[:middle])
            file.write(text[middle:])
            file.truncate(len(text))
            if self._rng.random() < 0.3:
                os.fsync(file.fileno())

    def write_through_memory(self, path: Path, other: Path) -> None:
        size = int(path.read_bytes().partition(b"\n")[0].split()[1])
        self._version += 1
        text = content(self._version, size)
        with mapped(path, writable=True) as memory:  # the file is not open any more
            middle = len(text) // 2
            memory[:middle] = text[:middle]
            other.with_name("moment").write_bytes(b"")
            other.with_name("moment").unlink()
            memory[middle:] = text[middle:]

    def grow_and_cut(self, path: Path, other: Path) -> None:
        size = path.stat().st_size
        with path.open("ab", buffering=0) as file:
            file.write(b"more than there was")
            os.ftruncate(file.fileno(), size)

    def replace(self, path: Path, other: Path) -> None:
        fresh = self._mount / "fresh"
        fresh.write_bytes(self.next_content())
        fresh.replace(path)

    def link(self, path: Path, other: Path) -> None:
        os.link(path, other)

    def move(self, path: Path, other: Path) -> None:
        path.rename(other)

    def remove(self, path: Path, other: Path) -> None:
        path.unlink()


async def test_every_snapshot_holds_what_its_files_were_and_never_changes(
    make_cluster: Any, tmp_path: Path, rng: random.Random, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("snapshot.postponed")  # the job hardly ever pauses
    cluster = await make_cluster(
        "a", ram_size="512MiB", replicas=0, settle="10ms", keep={"ram": 1000, "bucket": 1000}
    )
    node, mount = cluster["a"], cluster.mountpoint("a")
    await node.mount("default/job/0", mount)
    job = Job(mount, rng)
    texts: dict[str, str] = {}
    for number in range(_MOST_OPERATIONS):
        await trio.to_thread.run_sync(job.step)
        if number % 60 == 50 and (listed := await node.list("default/job/0")):
            texts[listed[-1].id] = (await node.cli("show", listed[-1].id)).stdout
            if number > _OPERATIONS and len(listed) >= 5:
                break
    await node.wait("default/job/0", "bucket", 60)
    listed = await node.list("default/job/0")
    assert len(listed) >= 3
    assert not any(tier["damaged"] for tier in (await node.verify())["tiers"])
    for snapshot in listed:
        if snapshot.id in texts:
            assert (await node.cli("show", snapshot.id)).stdout == texts[snapshot.id]
    for snapshot in rng.sample(listed, min(6, len(listed))):
        number = int(snapshot.id.rpartition("@")[2])
        target = tmp_path / f"restored{number}"
        await node.restore("default/job/0", target, snapshot=number)
        for path in set(target.iterdir()) - {target / "moment"}:
            assert is_whole(path.read_bytes()), f"{snapshot.id}: {path.name}"
