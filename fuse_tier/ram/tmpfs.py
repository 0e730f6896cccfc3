"""Makes a node's RAM tier: finds or mounts its tmpfs, marks it as ours, makes its directories.

Owns the marker file and the mount options. It never removes anything, and never takes a directory that is
not empty unless the marker says that it is this node's. Everything here blocks, briefly.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import stat
from dataclasses import dataclass
from typing import Literal

import structlog

from fuse_tier.errors import ConfigError
from fuse_tier.ram.layout import Layout

log = structlog.get_logger(__name__)

FORMAT = 1
MOUNT_SOURCE = "fuse-tier"  # what /proc/mounts shows; tells our mounts from others
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 2, 4, 32  # linux/mount.h
_PROBE_BYTES = 16 << 20

Filesystem = Literal["tmpfs mounted by us", "tmpfs that was there"]


@dataclass(frozen=True, slots=True)
class RamSetup:
    """What ``prepare_ram`` found or made."""

    layout: Layout
    filesystem: Filesystem
    huge_pages: str  # for people: 'within_size', 'never', …
    mounted: bool  # by this very call


@dataclass(frozen=True, slots=True)
class _Mounted:
    point: str
    kind: str
    source: str
    options: dict[str, str]


def prepare_ram(path: str, size: int, node: str, cluster: str) -> RamSetup:
    """Makes ``path`` a RAM tier of ``size`` bytes, or finds it as it was left.

    A directory on a tmpfs is used as it is, whatever the size of that tmpfs. Elsewhere a tmpfs is mounted, which
    needs root. Raises ConfigError, and then nothing was changed.
    """
    path = os.path.realpath(path)
    _check_directory(path)
    mounted = False
    if _mount_of(path).kind != "tmpfs":
        if os.path.isdir(path) and os.listdir(path):
            raise ConfigError(f"ram.path {path} is not empty and not ours: name a directory that is empty or new")
        _mount(path, size)
        mounted = True
    else:
        _check_marker(path, node, cluster)
        os.makedirs(path, mode=0o700, exist_ok=True)
    found = _mount_of(path)
    ours = found.source == MOUNT_SOURCE and found.point == path
    if ours and not mounted:
        _resize(path, size)
    layout = Layout(path)
    os.chmod(path, 0o700)
    if not os.path.exists(layout.marker):
        _write_marker(layout, node, cluster)
    create_directories(layout)
    setup = RamSetup(layout, "tmpfs mounted by us" if ours else "tmpfs that was there", _huge_pages(path), mounted)
    log.info("ram.prepared", path=path, filesystem=setup.filesystem, huge_pages=setup.huge_pages, mounted=mounted)
    return setup


def create_directories(layout: Layout) -> None:
    """Makes the directories of a layout that are not there yet."""
    for directory in (layout.blobs, layout.incoming, layout.manifests, layout.volumes):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    for first in range(256):
        os.makedirs(os.path.join(layout.blobs, f"{first:02x}"), mode=0o700, exist_ok=True)


def _check_directory(path: str) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"ram.path {path} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"ram.path {path} is no directory: name one that is empty or new")
    if found.st_mode & stat.S_ISVTX:
        raise ConfigError(f"ram.path {path} is a directory that all users share: name one of your own in it")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"ram.path {path} belongs to user {found.st_uid}: name a directory of your own")


def _check_marker(path: str, node: str, cluster: str) -> None:
    marker = Layout(path).marker
    try:
        with open(marker, "rb") as file:
            text = file.read(1 << 16)
    except FileNotFoundError as missing:
        if os.path.isdir(path) and set(os.listdir(path)) - {os.path.basename(_temporary(marker))}:
            raise ConfigError(
                f"ram.path {path} is not empty and not ours: name a directory that is empty or new"
            ) from missing
        return
    try:
        said = json.loads(text)
        version, its_node, its_cluster = said["format"], said["node"], said["cluster"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{marker} cannot be read: if nothing in {path} is needed, remove it all") from error
    if version != FORMAT:
        raise ConfigError(f"{path} has format {version!r}, this version knows {FORMAT}: use the version that made it")
    if (its_node, its_cluster) != (node, cluster):
        raise ConfigError(
            f"ram.path {path} is that of node {its_node!r} in cluster {its_cluster!r}, not of {node!r} in "
            f"{cluster!r}: give each node a path of its own"
        )


def _write_marker(layout: Layout, node: str, cluster: str) -> None:
    with open(_temporary(layout.marker), "w", encoding="ascii") as file:
        json.dump({"format": FORMAT, "node": node, "cluster": cluster}, file)
    os.rename(_temporary(layout.marker), layout.marker)


def _temporary(marker: str) -> str:
    return f"{marker}.new"


def _mount(path: str, size: int) -> None:
    existed = os.path.isdir(path)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"ram.path {path} cannot be made: {error.strerror}") from error
    wanted = f"size={size},mode=0700"
    # A kernel without huge pages refuses 'huge', one before 5.9 refuses 'inode64', which keeps inode numbers
    # from being used twice.
    for options in (f"{wanted},huge=within_size,inode64", f"{wanted},huge=within_size", f"{wanted},inode64", wanted):
        refused = _call_mount(path, _MS_NOSUID | _MS_NODEV, options)
        if refused != errno.EINVAL:
            break
    if not refused:
        return
    if not existed:
        os.rmdir(path)
    if refused == errno.EPERM:
        raise ConfigError(
            f"ram.path {path} is on no tmpfs, and mounting one needs root: name a path under /dev/shm, or run as root"
        )
    raise ConfigError(f"no tmpfs of {size} bytes can be mounted on ram.path {path}: {os.strerror(refused)}")


def _resize(path: str, size: int) -> None:
    found = os.statvfs(path)
    if found.f_blocks == -(-size // found.f_frsize):
        return
    refused = _call_mount(path, _MS_REMOUNT | _MS_NOSUID | _MS_NODEV, f"size={size}")
    if refused:
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        raise ConfigError(
            f"the tmpfs on ram.path {path} cannot be made {size} bytes large: {os.strerror(refused)}; "
            f"{used} bytes of it are in use"
        )


def take_back(setup: RamSetup) -> None:
    """Unmounts a tmpfs that was made for a node which then did not start. One that holds anything stays."""
    layout = setup.layout
    if not setup.mounted or os.listdir(layout.volumes) or os.listdir(layout.manifests):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(layout.root), 0):
        log.warning("ram.left_mounted", path=layout.root, reason=os.strerror(ctypes.get_errno()))


def _call_mount(path: str, flags: int, options: str) -> int:
    """mount(2) of a tmpfs; 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mount(
        MOUNT_SOURCE.encode(), os.fsencode(path), b"tmpfs", ctypes.c_ulong(flags), options.encode("ascii")
    )
    return ctypes.get_errno() if failed else 0


def _mount_of(path: str) -> _Mounted:
    """The mount that a path, or its nearest parent that is there, stands on."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    best: _Mounted | None = None
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            point = os.fsdecode(_unescape(fields[4]))
            if best is not None and len(point) < len(best.point):
                continue
            if path == point or path.startswith(point.rstrip("/") + "/"):
                kind, source, options = fields[fields.index(b"-") + 1 :]
                pairs = (option.partition("=") for option in options.decode("utf-8", "replace").split(","))
                best = _Mounted(point, kind.decode(), source.decode("utf-8", "replace"), {k: v for k, _, v in pairs})
    if best is None:
        raise ConfigError(f"/proc/self/mountinfo does not say which filesystem {path} is on: is /proc mounted?")
    return best


def _unescape(field: bytes) -> bytes:
    r"""Undoes the escapes of proc(5): ``\040`` and the like."""
    parts = field.split(b"\\")
    return parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])


def huge_page_mode(path: str) -> str:
    """What the tmpfs at a path was mounted with, in one word."""
    return _mount_of(path).options.get("huge", "never")


def _huge_pages(path: str) -> str:
    option = huge_page_mode(path)
    if option != "within_size":
        return option
    # Older kernels give 'within_size' small pages when a file grows by appending: said, because writes are
    # then half as fast. ('always' would cure that, and take 2 MiB for each small file.)
    return option if _appends_get_huge_pages(path) else "within_size, but not for files that grow"


def _appends_get_huge_pages(path: str) -> bool:
    found = os.statvfs(path)
    if found.f_bavail * found.f_frsize < 4 * _PROBE_BYTES:
        return True  # no room to try
    fd = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        before = _large_allocations()
        for _ in range(_PROBE_BYTES >> 20):
            os.write(fd, bytes(1 << 20))
        # The counters are the machine's. Others may move them meanwhile, but the answer is only for people.
        return _large_allocations() > before
    finally:
        os.close(fd)


def _large_allocations() -> int:
    """How often tmpfs has got more than a small page at once, since the machine started."""
    # Since kernel 6.10 it may get any power of two, and the counters are in sysfs; before, huge pages only.
    counters = glob.glob("/sys/kernel/mm/transparent_hugepage/hugepages-*kB/stats/shmem_alloc")
    total = 0
    for counter in counters:
        with open(counter, "rb") as file:
            total += int(file.read())
    if not counters:
        with open("/proc/vmstat", "rb") as file:
            total = sum(int(line.split()[1]) for line in file if line.startswith(b"thp_file_alloc "))
    return total
