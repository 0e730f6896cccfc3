"""Whether the kernel reads and writes file content by itself: what decides it, and where it is told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_tier.mount.table import mount_at
from tests.fs.mounted import Mounted, Place
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def said_in_the_log(place: Place) -> int:
    return place.log.read_text().count("mount.made")


def test_without_a_word_it_is_what_the_kernel_can(start: Callable[..., Mounted], place: Place) -> None:
    mounted = start()
    if not mounted.said["passthrough"]:
        pytest.skip("needs a kernel with FUSE passthrough")
    assert mounted.said["reason"] == ""
    assert said_in_the_log(place) == 1


def test_a_configuration_may_decline_it(start: Callable[..., Mounted], place: Place) -> None:
    said = start(passthrough="off").said
    assert (said["passthrough"], said["reason"]) == (False, "the configuration says `passthrough: off`")
    assert said_in_the_log(place) == 1


def test_a_later_daemon_does_not_choose_again(
    start: Callable[..., Mounted], place: Place, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("daemon.ended")
    mounted = start()
    for _ in range(2):
        mounted.kill_daemon()
        (mounted.path / "file").write_bytes(b"content")
    assert said_in_the_log(place) == 1


class TestOnWhatTheKernelDoesNotStackUpon:
    """A filesystem that itself stands on another one: the kernel offers passthrough, and refuses the first file."""

    @pytest.fixture
    def memory_path(self, memory_path: Path) -> Iterator[Path]:
        for name in ("lower", "upper", "work", "stacked"):
            (memory_path / name).mkdir()
        parts = [f"{option}dir={memory_path / option}" for option in ("lower", "upper", "work")]
        command = ["mount", "-t", "overlay", "-o", ",".join(parts), "overlay", str(memory_path / "stacked")]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs overlayfs on a tmpfs")
        yield memory_path / "stacked"
        subprocess.run(["umount", memory_path / "stacked"], check=True)

    def test_without_a_word_the_mount_does_without_and_says_why(self, start: Callable[..., Mounted]) -> None:
        mounted = start()
        assert mounted.said["passthrough"] is False
        assert mounted.said["reason"].startswith(("the kernel refuses it for files at ", "the kernel offers none"))
        (mounted.path / "file").write_bytes(b"content")
        assert (mounted.path / "file").read_bytes() == b"content"

    def test_a_mount_that_must_have_it_is_refused_and_nothing_is_mounted(
        self, start: Callable[..., Mounted], place: Place
    ) -> None:
        error = start(passthrough="on").said["error"]
        assert error["type"] == "MountError"
        assert "could not be mounted with passthrough, as `passthrough: on` wants it: the kernel " in error["message"]
        assert mount_at(str(place.mountpoint)) is None
