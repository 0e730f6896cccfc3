"""Making and ending a mount: where it may be, whether the kernel reads and writes by itself, and how it goes away."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace

import structlog

from fuse_tier.errors import MountError
from fuse_tier.fs.spec import MountSpec
from fuse_tier.mount.device import Device, mount_device
from fuse_tier.mount.messages import Handshake
from fuse_tier.mount.mountpoint import MountpointBusy, check_mountpoint, unmount
from fuse_tier.mount.table import canonical, mount_at
from fuse_tier.ram.layout import Layout

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MadeMount:
    """A mount whose handshake is done, so that the kernel queues requests until somebody reads them."""

    device: Device
    handshake: Handshake
    number: int
    """Its device number, as in ``st_dev``: what tells it from another at the same place."""
    reason: str
    """Why there is no passthrough; empty where there is."""


def mount(spec: MountSpec) -> MadeMount:
    """Mounts. Raises MountError, and nothing is mounted then."""
    tree = Layout(spec.ram_root).volume(spec.identity).tree
    if not os.path.isdir(tree):
        raise MountError(f"volume {spec.identity} has no tree at {tree}: it must be restored or made first")
    check_mountpoint(spec.mountpoint, spec.ram_root)
    device = mount_device(spec.mountpoint, read_only=spec.read_only)
    try:
        number = device_of(spec.mountpoint)
        try:
            handshake = device.shake_hands(passthrough=spec.passthrough != "off")
        except OSError as error:
            raise MountError(f"{spec.mountpoint} could not be mounted: {error.strerror}") from error
        reason = _why_not_passthrough(spec, device, handshake, tree)
        if reason and spec.passthrough == "on":
            raise MountError(
                f"{spec.mountpoint} could not be mounted with passthrough, as `passthrough: on` wants it: {reason}"
            )
        if reason:
            handshake = replace(handshake, passthrough=False)
        log.info(
            "mount.made",
            mountpoint=spec.mountpoint,
            passthrough=handshake.passthrough,
            reason=reason,
            protocol=f"7.{handshake.minor}",
            resends=handshake.resends,
        )
        return MadeMount(device, handshake, number, reason)
    except BaseException:
        unmount(spec.mountpoint, lazy=True)
        device.close()
        raise


def _why_not_passthrough(spec: MountSpec, device: Device, handshake: Handshake, tree: str) -> str:
    if spec.passthrough == "off":
        return "the configuration says `passthrough: off`"
    if not handshake.passthrough:
        return "the kernel offers none (Linux 6.9 with CONFIG_FUSE_PASSTHROUGH does)"
    try:
        fd = os.open(tree, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            device.close_backing(device.open_backing(fd))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.EPERM:
            return "it takes root (CAP_SYS_ADMIN)"
        return f"the kernel refuses it for files at {tree}: {error.strerror}"
    return ""


def device_of(mountpoint: str) -> int:
    """The device number of our mount at ``mountpoint``. Raises MountError if it isn't there."""
    found = mount_at(canonical(mountpoint))
    if found is None or not found.is_ours:
        raise MountError(f"{mountpoint} is no longer a mount of ours: somebody unmounted it just now")
    return found.device


def is_mounted(mountpoint: str, device: int) -> bool:
    """Whether our mount is still the one at ``mountpoint``."""
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
