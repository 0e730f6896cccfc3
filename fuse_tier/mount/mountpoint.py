"""Whether a directory may become a mountpoint, and how a mount is ended.

Everything here blocks, some of it for as long as a filesystem doesn't answer: call it in a thread that
``abort_connection``, or the end of the daemon, sets free. Nothing is changed by a check.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from typing import Final

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import MountError
from fuse_tier.mount.table import Mount, canonical, is_inside, is_ours, mount_around, mount_at

__all__ = ["MountpointBusy", "abort_connection", "check_mountpoint", "is_ours", "unmount"]

FUSE_DEVICE: Final = "/dev/fuse"
_CONNECTIONS: Final = "/sys/fs/fuse/connections"
_MNT_FORCE: Final = 1  # sys/mount.h
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_STALE: Final = (errno.ENOTCONN, errno.ECONNABORTED)
_libc = ctypes.CDLL(None, use_errno=True)


class MountpointBusy(MountError):
    """Somebody has a file or a working directory in the mount."""


def check_mountpoint(path: str, ram_root: str | None = None) -> None:
    """Raises MountError unless a volume can be mounted at the absolute ``path``.

    ``ram_root`` is the node's RAM tier: a volume mounted inside it, or over it, would wait for itself.
    """
    if not os.path.isabs(path):
        raise MountError(f"mountpoint {path!r} is no absolute path: give it from the root")
    try:
        path = canonical(path)
        # The table first: a stat of a mount whose daemon is stuck would hang.
        _refuse_mounted(path)
        _refuse_wrong_kind(path)
        if ram_root is not None:
            _refuse_ram_tier(path, os.path.realpath(ram_root))
        _refuse_unusable(path)
    except OSError as error:
        raise MountError(f"mountpoint {path} cannot be used: {error.strerror}: choose another directory") from error
    _check_privileges(path)


def _refuse_mounted(path: str) -> None:
    mount = mount_at(path)
    if mount is not None:
        if mount.is_fuse and _is_stale(path):
            raise MountError(
                f"mountpoint {path} holds a dead mount ({mount.filesystem}), whose process has ended: "
                f"remove it with `fusermount3 -u {path}`, then mount again"
            )
        if mount.is_ours:
            raise MountError(
                f"mountpoint {path} is a mounted volume already: end that with `fuse-tier unmount {path}`"
            )
        raise MountError(
            f"mountpoint {path} is in use by another filesystem ({mount.filesystem} from {mount.source}): "
            "unmount that, or choose another directory"
        )
    around = mount_around(path)
    if around is not None and around.is_ours:
        raise MountError(
            f"mountpoint {path} lies inside the volume mounted at {around.path}: choose one outside of it"
        )


def _is_stale(path: str) -> bool:
    """Whether nobody answers any more. statfs, because attributes of a dead mount may come from a cache."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in _STALE
    return False


def _refuse_wrong_kind(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        raise MountError(f"mountpoint {path} does not exist: create it with `mkdir -p {path}`") from None
    except NotADirectoryError:
        raise MountError(f"mountpoint {path} does not exist: a part of its path is a file; choose another") from None
    except PermissionError:
        raise MountError(
            f"mountpoint {path} is out of reach: a directory above it may not be entered by {_user()}; "
            "choose another directory"
        ) from None
    if stat.S_ISLNK(mode):
        raise MountError(f"mountpoint {path} is a symlink to {os.readlink(path)}: give the directory itself")
    if stat.S_ISREG(mode):
        raise MountError(f"mountpoint {path} is a file: give an empty directory")
    if not stat.S_ISDIR(mode):
        raise MountError(f"mountpoint {path} is no directory (it is a {_kind(mode)}): give an empty directory")


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _refuse_ram_tier(path: str, ram_root: str) -> None:
    if is_inside(path, ram_root):
        raise MountError(f"mountpoint {path} lies inside the RAM tier {ram_root}: choose a directory outside of it")
    if is_inside(ram_root, path):
        raise MountError(f"mountpoint {path} would hide the RAM tier {ram_root} below it: choose another directory")


def _refuse_unusable(path: str) -> None:
    # What fusermount3 asks for. Root may mount over a directory that nobody may write, which is worth having: what
    # is written beside the mount is lost.
    status = os.stat(path)
    if os.geteuid() != 0 and status.st_mode & stat.S_ISVTX and status.st_uid != os.geteuid():
        raise MountError(
            f"mountpoint {path} is a shared (sticky) directory that does not belong to {_user()}: "
            "create a directory of your own in it"
        )
    if os.geteuid() != 0 and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise MountError(
            f"mountpoint {path} may not be read and written by {_user()}: "
            "choose a directory of your own, or run the node as root"
        )
    with os.scandir(path) as entries:
        if any(True for _ in entries):
            raise MountError(
                f"mountpoint {path} is not empty, and a mount would hide its files: give an empty directory"
            )


def _check_privileges(path: str) -> None:
    if not os.path.exists(FUSE_DEVICE):
        raise MountError(
            f"{path} cannot be mounted: {FUSE_DEVICE} is missing: load the kernel module with `modprobe fuse`, "
            "or give the container that device"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountError(
            f"{path} cannot be mounted: {FUSE_DEVICE} may not be opened by {_user()}: "
            f"let root `chmod 666 {FUSE_DEVICE}`, which is usual, or run the node as root"
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MountError(
            f"{path} cannot be mounted without root: fusermount3 is missing: install Debian's package fuse3"
        )


def _user() -> str:
    return f"user {os.geteuid()}"


def unmount(path: str, *, lazy: bool) -> None:
    """Ends the mount at ``path``, and does nothing when nothing is mounted there.

    ``lazy`` takes it out of sight at once, while those who still have it open keep it until they close it.
    Raises MountpointBusy when it is in use and not ``lazy``, MountError when the kernel refuses otherwise.
    """
    path = canonical(path)
    mount = mount_at(path)
    if mount is None:
        return
    reason = _unmount_as_root(path, lazy) if os.geteuid() == 0 else _unmount_as_user(path, lazy)
    if reason is None:
        return
    if reason == os.strerror(errno.EBUSY):
        raise MountpointBusy(f"{path} is in use: end the processes that use it, then unmount again")
    # Somebody else was faster: what was asked for is done.
    if (left := mount_at(path)) is None or left.number != mount.number:
        return
    raise MountError(f"{path} could not be unmounted: {reason}: only who mounted it, or root, may end it")


def _unmount_as_root(path: str, lazy: bool) -> str | None:
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    return None if _libc.umount2(os.fsencode(path), flags) == 0 else os.strerror(ctypes.get_errno())


def _unmount_as_user(path: str, lazy: bool) -> str | None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=Deadline.KERNEL_UNMOUNT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return "fusermount3 is missing (install Debian's package fuse3)"
    except subprocess.TimeoutExpired:
        return f"fusermount3 did not end within {Deadline.KERNEL_UNMOUNT:g} s"
    if ended.returncode == 0:
        return None
    said = os.fsdecode(ended.stderr).strip()
    # "fusermount3: failed to unmount PATH: Device or resource busy", where PATH may hold anything
    busy = os.strerror(errno.EBUSY)
    return busy if said.endswith(busy) else said


def abort_connection(path: str) -> None:
    """Makes the FUSE mount at ``path`` fail every waiting and later operation (ENOTCONN), which frees who waits.

    The mount stays in place; does nothing when nothing of FUSE is mounted there. Raises MountError.
    """
    path = canonical(path)
    mount = mount_at(path)
    if mount is None or not mount.is_fuse:
        return
    control = f"{_CONNECTIONS}/{mount.minor}/abort"
    try:
        with open(control, "w") as abort:
            abort.write("1")
    except FileNotFoundError:
        _abort_by_force(path, mount)
    except OSError as error:
        raise MountError(
            f"the connection of {path} could not be aborted ({control}: {error.strerror}): "
            "end its daemon with SIGKILL"
        ) from error


def _abort_by_force(path: str, mount: Mount) -> None:
    """Where fusectl isn't mounted: a forced unmount aborts first, and takes the mount away if nobody uses it."""
    if _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | _MNT_FORCE) == 0:
        return
    code = ctypes.get_errno()
    if code != errno.EBUSY and mount_at(path) == mount:
        raise MountError(
            f"the connection of {path} could not be aborted ({os.strerror(code)}): mount fusectl at {_CONNECTIONS}, "
            "or end its daemon with SIGKILL"
        )
