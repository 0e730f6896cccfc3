from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import DeadlineExceeded
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.localcluster.processes import Family, detach_mounts, kill_all, mounts_below

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


async def _until_logged(family: Family, text: str) -> None:
    while text not in family.output():  # noqa: ASYNC110 - a file tells nobody that it has grown
        await trio.sleep(0.01)


@pytest.fixture
async def family(tmp_path: Path) -> AsyncIterator[Family]:
    started = Family("a parent", ["-c", _PARENT], tmp_path / "parent.log")
    started.start()
    await _until_logged(started, "ready")
    yield started
    await started.kill()


async def test_a_child_with_a_session_of_its_own_belongs_to_the_family(family: Family) -> None:
    assert len(family.members()) == 2
    assert family.pid in family.members()


async def test_killing_leaves_no_process(family: Family) -> None:
    await family.kill()
    assert family.members() == set()
    assert not family.runs


async def test_a_child_whose_parent_has_ended_is_killed_too(family: Family) -> None:
    assert await family.terminate(10) == -15
    assert len(family.members()) == 1
    await kill_all([family])
    assert family.members() == set()


async def test_a_process_that_ignores_being_asked_to_end_is_named(tmp_path: Path) -> None:
    stubborn = Family(
        "a stubborn one",
        ["-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"],
        tmp_path / "stubborn.log",
    )
    stubborn.start()
    await _until_logged(stubborn, "ready")
    with pytest.raises(DeadlineExceeded, match="a stubborn one"):
        await stubborn.terminate(0.05)
    await stubborn.kill()


def test_free_ports_are_different_ones() -> None:
    assert len(set(free_ports(20))) == 20


@pytest.mark.root
def test_mounts_are_found_and_detached_innermost_first(tmp_path: Path) -> None:
    outer = tmp_path / "with blank"
    outer.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "test", str(outer)], check=True)
    inner = outer / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "test", str(inner)], check=True)
    assert mounts_below(tmp_path) == [inner, outer]
    detach_mounts(tmp_path)
    assert mounts_below(tmp_path) == []
