"""How a mount starts: what is refused, what it looks like, and how small its daemon is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuse_tier.mount.table import mount_at
from tests.fs.mounted import Mounted, Place

pytestmark = pytest.mark.fuse

_WORDS_OF_OTHERS = ("grpc", "google", "pydantic", "click", "numpy", "pyfuse3")


def test_the_mount_is_what_the_kernel_and_frameworks_shall_see(mounted: Mounted) -> None:
    found = mount_at(str(mounted.path))
    assert found
    assert (found.filesystem, found.source) == ("fuse.fuse_tier", "fuse_tier")


def test_a_volume_can_be_mounted_again_and_has_what_it_had(start: Callable[..., Mounted]) -> None:
    inodes = []
    for round_ in range(3):
        mounted = start()
        (mounted.path / f"file{round_}").write_bytes(b"%d" % round_)
        inodes.append((mounted.path / "file0").stat().st_ino)
        assert len(list(mounted.path.iterdir())) == round_ + 1
        mounted.unmount()
        assert mounted.wait() == 0
    assert len(set(inodes)) == 1


def test_the_daemon_lives_on_when_nobody_reads_its_log(place: Place) -> None:
    spec = {
        "ram_root": place.layout.root,
        "identity": "default/job/rank-0",
        "mountpoint": str(place.mountpoint),
        "worker_socket": place.socket,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "fuse_tier.fs", "--spec", json.dumps(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    try:
        assert json.loads(process.stdout.readline())["serving"]
        process.stderr.close()
        os.getxattr(place.mountpoint, "user.fuse_tier.state")
        (place.mountpoint / "file").write_bytes(b"content")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
        process.stdout.close()
    assert status == 0


@pytest.mark.parametrize(
    ("parameters", "kind", "words"),
    [
        ({"mountpoint": "/missing/there"}, "MountError", "does not exist"),
        ({"mountpoint": "relative"}, "ConfigError", "'mountpoint' of a mount must be an absolute path"),
        ({"identity": "a/../b"}, "ConfigError", "no valid part of an identity"),
        ({"identity": "default/job/never-made"}, "MountError", "has no tree"),
        ({"fsync": "moon"}, "ConfigError", "must be one of ram, peer, bucket"),
        ({"colour": "blue"}, "ConfigError", "no parameter 'colour'"),
        ({"read_only": "yes"}, "ConfigError", "true or false"),
    ],
)
def test_what_cannot_be_mounted_is_said_in_one_line(
    place: Place, parameters: dict[str, Any], kind: str, words: str
) -> None:
    spec: dict[str, Any] = {
        "ram_root": place.layout.root,
        "identity": "default/job/rank-0",
        "mountpoint": str(place.mountpoint),
        "worker_socket": place.socket,
    }
    done = subprocess.run(
        [sys.executable, "-m", "fuse_tier.fs"], input=json.dumps(spec | parameters), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    error = json.loads(done.stdout)["error"]
    assert error["type"] == kind
    assert words in error["message"]
    assert "Traceback" not in done.stderr
    assert mount_at(str(place.mountpoint)) is None


def test_a_mountpoint_in_use_is_refused_and_its_mount_left_alone(
    mounted: Mounted, start: Callable[..., Mounted]
) -> None:
    (mounted.path / "file").write_bytes(b"content")
    assert start().said["error"]["type"] == "MountError"
    assert (mounted.path / "file").read_bytes() == b"content"


def test_the_daemon_stays_small(mounted: Mounted) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, fuse_tier.fs.__main__; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {name.partition(".")[0] for name in loaded.stdout.split()}.isdisjoint(_WORDS_OF_OTHERS)
    status = Path(f"/proc/{mounted.daemon}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < 60_000
