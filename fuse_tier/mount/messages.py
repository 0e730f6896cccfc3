"""The messages between the kernel and who serves a mount: their numbers and shapes, from linux/fuse.h.

Nothing here reads or writes a descriptor. All messages are in the machine's own byte order. Protocol 7.31
(Linux 5.4) and later, as far as this program uses it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final


class Opcode(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51


REQUEST: Final = Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, extensions
REPLY: Final = Struct("=IiQ")  # length, minus errno, unique
# node, generation, seconds and nanoseconds that the name and the attributes are valid; then the attributes:
# inode, size, blocks, times in seconds and nanoseconds, mode, links, uid, gid, device, block size, flags
ENTRY: Final = Struct("=QQQQIIQQQqqqIIIIIIIIII")
ATTRIBUTES_AT: Final = 40  # in an entry
ATTRIBUTES_VALID: Final = Struct("=QII")  # what stands before attributes without a name
OPENED: Final = Struct("=QIi")  # handle, flags, backing id
STATFS: Final = Struct("=QQQQQIIII24x")
DIRECTORY_ENTRY: Final = Struct("=QQII")  # inode, offset of the next, length of the name, type; the name, padded to 8

RESENT: Final = 1 << 63  # FUSE_UNIQUE_RESEND, kernel 6.9: a request that another process has read before
NOTIFY_RESEND: Final = 7  # FUSE_NOTIFY_RESEND, kernel 6.9

OPEN_DIRECT: Final = 1 << 0  # FOPEN_DIRECT_IO
OPEN_KEEP_CACHE: Final = 1 << 1
OPEN_CACHE_LISTING: Final = 1 << 3  # FOPEN_CACHE_DIR
OPEN_NO_FLUSH: Final = 1 << 5  # kernel 5.16
OPEN_PASSTHROUGH: Final = 1 << 7  # kernel 6.9

OPEN_KILLS_PRIVILEGES: Final = 1 << 0  # FUSE_OPEN_KILL_SUIDGID
WRITE_FROM_CACHE: Final = 1 << 0  # FUSE_WRITE_CACHE
WRITE_KILLS_PRIVILEGES: Final = 1 << 2  # FUSE_WRITE_KILL_SUIDGID

MOST_BYTES: Final = 1 << 20  # of file content in one request; the kernel allows 256 pages
READ_BUFFER_BYTES: Final = MOST_BYTES + (1 << 12)
PATIENT_READ_BYTES: Final = 1 << 13  # FUSE_MIN_READ_BUFFER

# Init flags, offered by the kernel and wanted by us. What is not wanted: locks (the kernel's own survive us), the
# writeback cache (it would know sizes before we do, and rules passthrough out), ACLs (no snapshot holds them).
_WANTED: Final = (
    1 << 0  # FUSE_ASYNC_READ
    | 1 << 3  # FUSE_ATOMIC_O_TRUNC
    | 1 << 5  # FUSE_BIG_WRITES
    | 1 << 13  # FUSE_DO_READDIRPLUS
    | 1 << 14  # FUSE_READDIRPLUS_AUTO
    | 1 << 15  # FUSE_ASYNC_DIO
    | 1 << 18  # FUSE_PARALLEL_DIROPS
    | 1 << 21  # FUSE_ABORT_ERROR
    | 1 << 22  # FUSE_MAX_PAGES
    | 1 << 23  # FUSE_CACHE_SYMLINKS
    | 1 << 28  # FUSE_HANDLE_KILLPRIV_V2: without, each write would first ask for security.capability
    | 1 << 30  # FUSE_INIT_EXT
    | 1 << 36  # FUSE_DIRECT_IO_ALLOW_MMAP
    | 1 << 39  # FUSE_HAS_RESEND
)
_PASSTHROUGH: Final = 1 << 37  # FUSE_PASSTHROUGH, kernel 6.9
_HAS_RESEND: Final = 1 << 39
_EXTENDED: Final = 1 << 30
_INIT: Final = Struct("=IIIII")  # major, minor, readahead, flags, flags2 (from 7.36 on)
_INIT_SHORT: Final = Struct("=IIII")
# major, minor, readahead, flags, background, congestion, max write, time granularity, pages, alignment, flags2,
# stack depth, request timeout
_INIT_REPLY: Final = Struct("=IIIIHHIIHHIIH22x")
_OLDEST_MINOR: Final = 31
_BACKGROUND: Final = 64  # requests of readahead and the like in flight
_CONGESTED: Final = 48


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the kernel and we agreed on when the mount was made; it holds for as long as the mount lives."""

    minor: int
    """Of the kernel's protocol 7."""
    passthrough: bool
    """The kernel may read and write files without asking us."""
    resends: bool
    """The kernel gives out again what was read and never answered."""


def shake_hands(message: memoryview, *, passthrough: bool) -> tuple[Handshake, bytes]:
    """What is agreed on, given the kernel's first request, and the reply to it. Raises OSError (EPROTO)."""
    _, opcode, unique, *_ = REQUEST.unpack_from(message)
    if opcode != Opcode.INIT:
        raise OSError(errno.EPROTO, f"the kernel's first request was number {opcode}")
    body = message[REQUEST.size :]
    if len(body) >= _INIT.size:
        major, minor, readahead, flags, more = _INIT.unpack_from(body)
    else:
        (major, minor, readahead, flags), more = _INIT_SHORT.unpack_from(body), 0
    if major != 7 or minor < _OLDEST_MINOR:
        raise OSError(errno.EPROTO, f"the kernel's FUSE is {major}.{minor}: 7.{_OLDEST_MINOR} (Linux 5.4) is needed")
    offered = flags | (more << 32 if flags & _EXTENDED else 0)
    agreed = offered & (_WANTED | (_PASSTHROUGH if passthrough else 0))
    shaken = Handshake(minor, bool(agreed & _PASSTHROUGH), bool(agreed & _HAS_RESEND))
    reply = _INIT_REPLY.pack(
        7,
        min(minor, 45),
        readahead,
        agreed & 0xFFFFFFFF,
        _BACKGROUND,
        _CONGESTED,
        MOST_BYTES,
        1,
        MOST_BYTES // os.sysconf("SC_PAGESIZE"),
        0,
        agreed >> 32,
        1 if shaken.passthrough else 0,
        0,
    )
    return shaken, REPLY.pack(REPLY.size + len(reply), 0, unique) + reply


def resend_notification() -> bytes:
    """Asks the kernel to give out again what has been read and not been answered."""
    return REPLY.pack(REPLY.size, NOTIFY_RESEND, 0)
