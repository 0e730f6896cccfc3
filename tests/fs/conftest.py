from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fs.mounted import Mounted, Place
from tests.harness.logs import ExpectedLogs, loud_lines


@pytest.fixture
def place(memory_path: Path, tmp_path: Path, expected_logs: ExpectedLogs) -> Iterator[Place]:
    """An empty volume on a tmpfs."""
    # Not below pytest's own directory, into which it lets nobody else.
    place = Place(memory_path, tmp_path / "fs.log", memory_path / "mnt")
    place.prepare()
    place.log.touch()
    yield place
    # Here and not by ``watch``, because the log is gone when that would look.
    for line in loud_lines(place.log):
        expected_logs.hear(line)


@pytest.fixture
def start(place: Place, expected_logs: ExpectedLogs) -> Iterator[Callable[..., Mounted]]:
    """Starts daemons of the volume, with parameters of the test's choice."""
    started: list[Mounted] = []

    def start_one(**parameters: Any) -> Mounted:
        mounted = Mounted(place, **parameters)
        started.append(mounted)
        return mounted

    try:
        yield start_one
    finally:
        for mounted in started:
            in_order = mounted.process.poll() is not None
            if not in_order:
                # As a user would, so that nothing is cut short in tests that end well.
                subprocess.run(["fusermount3", "-u", str(mounted.path)], check=False, capture_output=True)
                try:
                    mounted.process.wait(3)
                except subprocess.TimeoutExpired:
                    expected_logs.allow("mount.cut_short")
            mounted.destroy()


_MODES = [pytest.param("on", id="passthrough", marks=pytest.mark.root), pytest.param("off", id="plain")]


def _check_mode(mounted: Mounted, mode: str) -> None:
    if "error" in mounted.said and "the kernel offers none" in mounted.said["error"]["message"]:
        pytest.skip("needs a kernel with FUSE passthrough")
    assert (mounted.said["serving"], mounted.said["passthrough"]) == (True, mode == "on")


@pytest.fixture(params=_MODES)
def mounted(request: pytest.FixtureRequest, start: Callable[..., Mounted]) -> Mounted:
    """The volume, mounted, once with passthrough and once without; no worker is there."""
    mounted = start(passthrough=request.param)
    _check_mode(mounted, request.param)
    return mounted


@pytest.fixture(scope="session", params=_MODES)
def shared(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """One mount of each kind for all tests that only need a mount: its start takes longer than most of them."""
    with tempfile.TemporaryDirectory(prefix="fuse-tier-test-", dir="/dev/shm") as directory:
        place = Place(Path(directory), Path(directory) / "fs.log", Path(directory) / "mnt")
        place.prepare()
        mounted = Mounted(place, passthrough=request.param)
        try:
            _check_mode(mounted, request.param)
            yield mounted
            mounted.unmount()
            assert mounted.wait() == 0
            assert loud_lines(place.log) == []
        finally:
            mounted.destroy()


@pytest.fixture
def mnt(shared: Mounted) -> Path:
    """An empty directory of a mount that no worker serves."""
    path = shared.path / f"test-{len(list(shared.path.iterdir()))}"
    path.mkdir()
    return path
