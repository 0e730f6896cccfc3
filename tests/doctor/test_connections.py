"""Mounts on which nobody answers: found, named, and ended on request; those that answer are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fuse_tier.doctor import connections
from fuse_tier.doctor.connections import CHECK, Connection, examine, find_connections
from fuse_tier.doctor.finding import State
from fuse_tier.mount.table import FILESYSTEM, Mount
from tests.cli.conftest import run
from tests.fs.mounted import Mounted, Place, mounts_below

OURS = Mount(30, 0, 51, "/mnt/a", FILESYSTEM, "fuse_tier")
OTHER = Mount(31, 0, 52, "/mnt/gcs", "fuse.gcsfuse", "bucket")
DISK = Mount(32, 8, 53, "/", "ext4", "/dev/sda1")


def test_a_connection_is_ours_by_the_nodes_own_word_and_else_by_its_mount() -> None:
    found = find_connections([53, 52, 51], [OURS, OTHER, DISK], None)
    assert [(one.number, one.mountpoint, one.is_ours) for one in found] == [
        (51, "/mnt/a", True),
        (52, "/mnt/gcs", False),
        (53, None, False),
    ]
    assert not find_connections([51], [OURS], {})[0].is_ours, "a volume of another node's"
    (detached,) = find_connections([51], [OTHER], {51: "default/llama/0"})
    assert detached == Connection(51, "default/llama/0, whose mount is out of sight", None, True)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.2)


@pytest.fixture
def stuck(memory_path: Path, tmp_path: Path) -> Iterator[Mounted]:
    """A mount whose daemon hangs, and somebody who waits for it."""
    place = Place(memory_path, tmp_path / "fs.log", memory_path / "mnt")
    place.prepare()
    mounted = Mounted(place)
    daemon = mounted.daemon
    os.kill(daemon, signal.SIGSTOP)
    try:
        yield mounted
    finally:
        with suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGCONT)
        mounted.destroy()


@pytest.mark.fuse
def test_a_mount_on_which_nobody_answers_is_found_and_ended_on_request(stuck: Mounted) -> None:
    number = os.minor(next(mount.device for mount in mounts_below(stuck.path)))
    waiting = subprocess.Popen(["stat", "-f", str(stuck.path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ram = stuck.place.layout.root
    (finding,) = [one for one in examine(ram, abort=False) if str(stuck.path) in one.detail]
    assert (finding.check, finding.state) == (CHECK, State.FAILED)
    assert f"connection {number} " in finding.detail
    assert "--abort-stuck" in finding.remedy
    assert waiting.poll() is None
    (ended,) = [one for one in examine(ram, abort=True) if str(stuck.path) in one.detail]
    assert (ended.state, "it was aborted" in ended.detail) == (State.WARNING, True)
    assert waiting.wait(30) != 0


@pytest.mark.fuse
def test_nobody_ends_a_mount_that_answers_or_is_another_nodes(
    memory_path: Path, tmp_path: Path, stuck: Mounted
) -> None:
    os.kill(stuck.daemon, signal.SIGCONT)
    assert all(str(stuck.path) not in one.detail for one in examine(stuck.place.layout.root, abort=True))
    os.kill(stuck.daemon, signal.SIGSTOP)
    (finding,) = [one for one in examine(str(tmp_path / "other"), abort=True) if str(stuck.path) in one.detail]
    assert (finding.state, "no mount of ours" in finding.remedy) == (State.WARNING, True)
    os.kill(stuck.daemon, signal.SIGCONT)
    assert os.statvfs(stuck.path).f_blocks


async def test_nothing_is_ended_without_saying_of_which_node() -> None:
    refused = await run("doctor", "--abort-stuck")
    assert refused.returncode == 2
    assert "--abort-stuck goes with --config" in refused.stderr
