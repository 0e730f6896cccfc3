"""Takes away what a driver that was removed has left on its node: RAM tier, mount, sockets, notes, control group.

Invariants: nothing is touched while anybody uses any of it: a process of the driver, a pod that has a volume mounted,
or the refuge, which keeps a mount for one that has. And nothing is removed that is not the driver's: a directory in
which something else lies stays, and is told.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from fuse_tier.errors import ConfigError
from fuse_tier.mount.table import is_inside, mount_at, read_mounts
from fuse_tier.node.claims import Taken, ram_tier_claimed, refuse_taken_ram_tier, refuse_taken_socket
from fuse_tier.node.refuge import dismiss, remove_groups
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.tmpfs import MOUNT_SOURCE


@dataclass(frozen=True, slots=True)
class Places:
    """Where a driver was: the directories that hold these go, too."""

    socket: str  # as in node.yaml
    ram: str  # likewise
    endpoint: str  # of the plugin
    kubelet: str


def clean(places: Places) -> str:
    """Takes all away, or says why not yet; empty when nothing is left. May be repeated. Blocks."""
    try:
        if in_use := _in_use(places):
            return in_use
        _end_ram_tier(places.ram)
        for path in _sockets_and_notes(places):
            _remove(path)
        for directory in (os.path.dirname(one) for one in (places.socket, places.ram, places.endpoint)):
            with suppress(FileNotFoundError):
                os.rmdir(directory)
        remove_groups()
    except Taken as error:
        return f"a driver was started: {error}"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _in_use(places: Places) -> str:
    """By whom; empty for nobody. A refuge that nobody needs is told to end."""
    for mount in read_mounts():
        if mount.is_ours and is_inside(mount.path, places.kubelet):
            return f"a volume is mounted at {mount.path}: end the job that uses it"
    try:
        for socket in (places.socket, f"{places.socket}.supervisor", places.endpoint):
            refuse_taken_socket(socket)
        refuse_taken_ram_tier(Layout(places.ram))
    except ConfigError as error:
        return f"the driver still runs: {error}"
    return "" if dismiss(places.socket) else "the refuge has not ended: it may keep a mount that a job still uses"


def _end_ram_tier(path: str) -> None:
    mount = mount_at(path)
    if mount is not None and mount.source == MOUNT_SOURCE:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    elif os.path.exists(Layout(path).marker):
        # In a tmpfs that was there before us, which a driver that starts now would not keep as it does a mount.
        with ram_tier_claimed(Layout(path)):
            shutil.rmtree(path)
    with suppress(FileNotFoundError):
        os.rmdir(path)


def _sockets_and_notes(places: Places) -> Iterator[str]:
    """All that the driver makes beside a socket begins with that one's name."""
    for socket in (places.socket, places.endpoint):
        directory, name = os.path.split(socket)
        with suppress(FileNotFoundError):
            for found in os.listdir(directory):
                if found == name or found.startswith(f"{name}."):
                    yield os.path.join(directory, found)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
