"""This machine: /dev/fuse, the right to mount, the kernel's passthrough, and memory for the RAM tier."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from typing import Final

from fuse_tier.config import RamConfig
from fuse_tier.doctor.finding import Finding
from fuse_tier.errors import FuseTierError
from fuse_tier.mount.device import Device, mount_device
from fuse_tier.mount.mountpoint import FUSE_DEVICE, unmount
from fuse_tier.quantities import format_size

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - a tmpfs, where a file is made that never has a name
_MOST_OF_MEMORY: Final = 0.8  # for the RAM tier; the rest is the jobs'


def examine(ram: RamConfig | None, passthrough: str) -> list[Finding]:
    """Blocks for some milliseconds, or for as long as a mount may hang."""
    device = _device()
    found = [device]
    if device.state == "ok":
        found += _mount(ram.path if ram else _SHARED_MEMORY, passthrough)
    else:
        found += [Finding.skipped(check, f"without {FUSE_DEVICE}") for check in ("fuse.mount", "fuse.passthrough")]
    return [*found, _memory(ram)] if ram else found


def _device() -> Finding:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            remedy = "load the module (`modprobe fuse`); in a container, give it the device /dev/fuse"
        else:
            remedy = "run as root, or `chmod a+rw /dev/fuse`; in a container, allow it the device"
        return Finding.failed("fuse.device", f"{FUSE_DEVICE}: {error.strerror}", remedy)
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return Finding.failed("fuse.device", "there is no fusermount3, which mounts for ordinary users",
                              "install Debian's package fuse3, or run as root")  # fmt: skip
    return Finding.ok("fuse.device", f"{FUSE_DEVICE} can be opened")


def _mount(backing: str, passthrough: str) -> list[Finding]:
    """Mounts an empty directory for a moment, with nobody behind it but us."""
    mountpoint = tempfile.mkdtemp(prefix="fuse-tier-doctor-")
    try:
        device = mount_device(mountpoint, read_only=True)
    except FuseTierError as error:
        os.rmdir(mountpoint)
        remedy = "run as root (in a container: privileged, or with CAP_SYS_ADMIN), or install fuse3"
        return [
            Finding.failed("fuse.mount", str(error), remedy),
            Finding.skipped("fuse.passthrough", "without a mount"),
        ]
    try:
        shaken = device.shake_hands(passthrough=True)
        mounted = Finding.ok("fuse.mount", f"a mount works, by protocol 7.{shaken.minor}")
        return [mounted, _passthrough(device, backing, passthrough, offered=shaken.passthrough)]
    except OSError as error:
        return [
            Finding.failed("fuse.mount", f"the kernel does not answer: {error.strerror}", "see the kernel's log"),
            Finding.skipped("fuse.passthrough", "without a mount"),
        ]
    finally:
        unmount(mountpoint, lazy=True)
        device.close()
        with suppress(OSError):
            os.rmdir(mountpoint)


def _passthrough(device: Device, backing: str, wanted: str, *, offered: bool) -> Finding:
    check = "fuse.passthrough"
    if wanted == "off":
        return Finding.ok(check, "not used, as `passthrough: off` says")
    reason, remedy = "", ""
    if not offered:
        reason = f"Linux {os.uname().release} offers none"
        remedy = "use Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH=y"
    else:
        try:
            place = backing if os.path.isdir(backing) else _SHARED_MEMORY
            fd = os.open(place, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            try:
                device.close_backing(device.open_backing(fd))
            finally:
                os.close(fd)
        except OSError as error:
            reason = f"the kernel refuses it: {error.strerror}"
            remedy = "run as root (CAP_SYS_ADMIN)" if error.errno == errno.EPERM else "use a tmpfs as `ram.path`"
    if not reason:
        return Finding.ok(check, "the kernel reads and writes file content by itself")
    if wanted == "on":
        return Finding.failed(check, f"{reason}, and `passthrough: on` wants it", f"{remedy}, or `passthrough: auto`")
    return Finding.warning(check, f"{reason}: file content goes through the daemon, which is slower", remedy)


def _memory(ram: RamConfig) -> Finding:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = pages * size
    detail = f"`ram.size` is {format_size(ram.size)} of {format_size(total)} of memory"
    if ram.size > total:
        return Finding.failed("ram.size", detail, "give it less: what does not fit is swapped, or kills processes")
    if ram.size > total * _MOST_OF_MEMORY:
        return Finding.warning("ram.size", detail, "leave more for the jobs (docs/memory.md)")
    return Finding.ok("ram.size", detail)
