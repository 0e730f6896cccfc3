"""The descriptor of /dev/fuse: how it is mounted, and what else the kernel does for it.

A mount lives for as long as any process holds its descriptor. Whoever reads it must be ready for a request of any
kind; while nobody does, those who use the mount wait.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
from typing import Final

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import MountError
from fuse_tier.mount.messages import READ_BUFFER_BYTES, REPLY, Handshake, resend_notification, shake_hands
from fuse_tier.mount.mountpoint import FUSE_DEVICE, unmount

_TYPE: Final = "fuse_tier"
_MS_RDONLY: Final = 1  # sys/mount.h
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_BACKING: Final = struct.Struct("=iIQ")  # descriptor, flags, padding
_BACKING_OPEN: Final = 0x4010E501  # FUSE_DEV_IOC_BACKING_OPEN: _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE: Final = 0x4004E502  # FUSE_DEV_IOC_BACKING_CLOSE: _IOW(229, 2, uint32_t)

_libc = ctypes.CDLL(None, use_errno=True)


class Device:
    """The descriptor of one mount, which is closed by whoever opened it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def shake_hands(self, *, passthrough: bool) -> Handshake:
        """Answers the kernel's first request. Raises OSError, DeadlineExceeded is the caller's to see."""
        waiting = select.poll()
        waiting.register(self.fd, select.POLLIN)
        if not waiting.poll(Deadline.CHANNEL_CALL * 1000):
            raise OSError(errno.ETIMEDOUT, "the kernel did not begin the FUSE handshake")
        buffer = bytearray(READ_BUFFER_BYTES)
        size = os.readv(self.fd, [buffer])
        shaken, reply = shake_hands(memoryview(buffer)[:size], passthrough=passthrough)
        os.write(self.fd, reply)
        return shaken

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended, as when what was mounted is mounted nowhere any more. Reads nothing."""
        waiting = select.poll()
        waiting.register(self.fd, 0)
        return any(event & select.POLLERR for _, event in waiting.poll(0))

    def open_backing(self, fd: int) -> int:
        """Lets the kernel read and write this file by itself; gives the number by which a reply names it.

        Raises OSError: EPERM without CAP_SYS_ADMIN, EOPNOTSUPP for a filesystem that cannot back another.
        """
        number: int = _libc.ioctl(self.fd, ctypes.c_ulong(_BACKING_OPEN), _BACKING.pack(fd, 0, 0))
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return number

    def close_backing(self, number: int) -> None:
        """The reverse; files that are open stay so. Raises OSError (ENOENT when there is none)."""
        fcntl.ioctl(self.fd, _BACKING_CLOSE, number.to_bytes(4, "little"))

    def answer(self, unique: int, body: bytes) -> bool:
        """Answers a request that a process before this one has read; False if it had its answer. Raises OSError."""
        try:
            os.writev(self.fd, [REPLY.pack(REPLY.size + len(body), 0, unique), body])
        except FileNotFoundError:  # ENOENT: no such request waits
            return False
        return True

    def ask_again(self) -> None:
        """Has the kernel give out again what was read and never answered."""
        os.write(self.fd, resend_notification())

    def close(self) -> None:
        """Closes it here; with the last copy of it the mount's connection ends."""
        os.close(self.fd)


def mount_device(mountpoint: str, *, read_only: bool) -> Device:
    """Mounts at a directory that ``check_mountpoint`` has seen. Raises MountError.

    Permissions are checked by the kernel. As root the mount is for all users, and without setuid programs and
    devices; otherwise it is for this user, made by fusermount3.
    """
    fd = _mount_as_root(mountpoint, read_only) if os.geteuid() == 0 else _mount_as_user(mountpoint, read_only)
    os.set_blocking(fd, False)
    return Device(fd)


def _mount_as_root(mountpoint: str, read_only: bool) -> int:
    fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
    kind = f"fuse.{_TYPE}".encode()
    if _libc.mount(_TYPE.encode(), os.fsencode(mountpoint), kind, flags, options.encode()) != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise MountError(f"{mountpoint} could not be mounted: {os.strerror(code)}")
    return fd


def _mount_as_user(mountpoint: str, read_only: bool) -> int:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = f"fsname={_TYPE},subtype={_TYPE},default_permissions" + (",ro" if read_only else "")
        try:
            ended = subprocess.run(
                ["fusermount3", "-o", options, "--", mountpoint],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=Deadline.KERNEL_UNMOUNT,
                check=False,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "LC_ALL": "C", "_FUSE_COMMFD": str(theirs.fileno())},
            )
        except FileNotFoundError as error:
            raise MountError(f"{mountpoint} could not be mounted: install Debian's package fuse3") from error
        except subprocess.TimeoutExpired as error:
            raise MountError(f"{mountpoint} could not be mounted: fusermount3 did not end") from error
        if ended.returncode != 0:
            reason = os.fsdecode(ended.stderr).strip().replace("\n", "; ")
            raise MountError(f"{mountpoint} could not be mounted: {reason}")
        received = array.array("i")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(received.itemsize), socket.MSG_DONTWAIT)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(content)
        if not received:
            unmount(mountpoint, lazy=True)
            raise MountError(f"{mountpoint} could not be mounted: fusermount3 gave no descriptor")
        os.set_inheritable(received[0], False)
        return received[0]
