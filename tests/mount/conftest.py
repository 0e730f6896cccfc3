"""Places to mount things in, and things to mount."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuse_tier.mount.mountpoint import FUSE_DEVICE
from fuse_tier.mount.table import is_inside, read_mounts
from tests.mount import tinyfs

TinyFs = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter; whatever is mounted below it at the end is taken away."""
    directory = Path(tempfile.mkdtemp(prefix="fuse-tier-place-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    for mount in reversed(read_mounts()):
        if is_inside(mount.path, str(directory)):
            subprocess.run(["umount", "--lazy", mount.path], check=True)
    shutil.rmtree(directory)


@pytest.fixture
def mountpoint(place: Path) -> Path:
    """A directory that is fit for a mount."""
    directory = place / "mnt"
    directory.mkdir()
    return directory


@pytest.fixture
def tiny_mount() -> Iterator[TinyFs]:
    """Mounts a tiny FUSE filesystem, given a mountpoint, a subtype (ours by default) and a uid; gives its process."""
    with ExitStack() as stack:

        def mount(at: Path, subtype: str = "fuse_tier", uid: int | None = None) -> subprocess.Popen[bytes]:
            command = [sys.executable, tinyfs.__file__, str(at), subtype, *([] if uid is None else [str(uid)])]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b'{"serving": true}\n'
            return process

        yield mount


@pytest.fixture
def fuse_for_all(tmp_path: Path) -> Iterator[None]:
    """The device open to everybody, as distributions have it; where it is root's alone, for the time of a test."""
    device = os.stat(FUSE_DEVICE)
    if device.st_mode & 0o006 == 0o006:
        yield
        return
    for_all = tmp_path / "fuse"
    os.mknod(for_all, stat.S_IFCHR, device.st_rdev)
    for_all.chmod(0o666)
    subprocess.run(["mount", "--bind", str(for_all), FUSE_DEVICE], check=True)
    yield
    subprocess.run(["umount", "--lazy", FUSE_DEVICE], check=True)


def as_user(uid: int, function: Callable[[], object]) -> str:
    """What ``function`` raises when an ordinary user calls it: in a process of its own, forked from this one."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            function()
        except Exception as error:  # noqa: BLE001 - told to the test
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        text = said.read().decode()
    os.waitpid(pid, 0)
    return text
