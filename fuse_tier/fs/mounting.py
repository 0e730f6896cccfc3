"""Making and ending the mount of this process. pyfuse3 keeps its session in globals: there is one.

The options: type ``fuse.fuse_tier``, permissions checked by the kernel; as root for all users and without setuid
programs and devices, otherwise (through fusermount3) for this user.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pyfuse3

from fuse_tier.errors import MountError
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.spec import MountSpec
from fuse_tier.mount.mountpoint import MountpointBusy, check_mountpoint, unmount
from fuse_tier.mount.table import canonical, mount_at

_TYPE: Final = "fuse_tier"


def mount(operations: Operations, spec: MountSpec, heard: Callable[[], str]) -> None:
    """Mounts, so that the kernel queues requests, which ``pyfuse3.main`` will answer. Raises MountError.

    ``heard`` is what ``libfuse_heard`` gives.
    """
    if spec.fuse_fd is not None:
        # libfuse takes a descriptor that is mounted already for a mountpoint of this name.
        pyfuse3.init(operations, f"/dev/fd/{spec.fuse_fd}", set())
        return
    check_mountpoint(spec.mountpoint, spec.ram_root)
    try:
        pyfuse3.init(operations, spec.mountpoint, options(spec.read_only))
    except RuntimeError as error:
        raise MountError(f"{spec.mountpoint} could not be mounted: {heard() or error}") from error


def options(read_only: bool) -> set[str]:
    """Mount options, for who we are."""
    chosen = {f"fsname={_TYPE}", f"subtype={_TYPE}", "default_permissions"}
    if os.geteuid() == 0:
        chosen |= {"allow_other", "nosuid", "nodev"}
    if read_only:
        chosen.add("ro")
    return chosen


@contextmanager
def libfuse_heard() -> Iterator[Callable[[], str]]:
    """Keeps what libfuse and fusermount3 say, which is on standard error and nowhere else; gives a way to read it.

    Why a mount failed is said there and in no other way, and a log of structured lines is no place for it.
    """
    kept, before = os.memfd_create("libfuse"), os.dup(2)
    try:
        os.dup2(kept, 2)
        yield lambda: os.fsdecode(os.pread(kept, 1 << 16, 0)).strip().replace("\n", "; ")
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(kept)


def device_of(mountpoint: str) -> int:
    """The device number of our mount at ``mountpoint``. Raises MountError if it isn't there."""
    found = mount_at(canonical(mountpoint))
    if found is None or not found.is_ours:
        raise MountError(f"{mountpoint} is no longer a mount of ours: somebody unmounted it just now")
    return found.device


def is_mounted(mountpoint: str, device: int) -> bool:
    """Whether the mount of that device number is the one at ``mountpoint``, alive or dead."""
    found = mount_at(canonical(mountpoint))
    return found is not None and found.device == device


def end_mount(mountpoint: str, device: int, *, at_once: bool) -> bool:
    """Takes our mount away, if it is still the one there; says whether nobody used it. Blocks. Raises MountError.

    When it is in use, or with ``at_once``, it only goes out of sight: the kernel ends it after its last user.
    """
    if not is_mounted(mountpoint, device):
        return True
    if not at_once:
        try:
            unmount(mountpoint, lazy=False)
            return True
        except MountpointBusy:
            pass  # out of sight, then
    unmount(mountpoint, lazy=True)
    return False
