"""One mount's keeper with all that belongs to it: the volume's lock, the mount, the place where it is visited.

A new mount is made in this order: lock, socket, mount, word of it in the lock's file. What another keeper has is
taken over in one piece; until it is ours, nothing of it is touched.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from fuse_tier.errors import MountError
from fuse_tier.fs import handover, mounting
from fuse_tier.fs.copy import Copy
from fuse_tier.fs.handover import Estate
from fuse_tier.fs.mounting import MadeMount
from fuse_tier.fs.reception import Reception, listen
from fuse_tier.fs.spec import MountSpec
from fuse_tier.fs.version import code_version
from fuse_tier.mount.claim import Record, take_claim
from fuse_tier.mount.container import container
from fuse_tier.mount.deposits import Safe
from fuse_tier.mount.keeper import Inheritance, Keeper
from fuse_tier.mount.mountpoint import check_mountpoint
from fuse_tier.mount.parent import outlive_parent
from fuse_tier.mount.succession import stand_as_keeper
from fuse_tier.ram.layout import Layout

Serve = Callable[[MountSpec, MadeMount, Inheritance], int]
"""A daemon's life."""


class Keeping:
    """Keeps a mount that is there, with ``estate``; ``predecessor`` is the connection to who has it still, if any."""

    def __init__(
        self, spec: MountSpec, serve: Serve, estate: Estate, predecessor: socket.socket | None = None
    ) -> None:
        self._spec = spec
        self._estate = estate
        self._version = code_version()
        self._predecessor = predecessor
        self._keeper = Keeper(
            estate.made.device,
            estate.made.handshake,
            partial(serve, spec, estate.made),
            safe=estate.safe,
            generation=estate.generation,
            told=estate.told,
            commit=None if predecessor is None else self._commit,
        )
        self._reception = (
            Reception(
                estate.listener,
                self._keeper,
                self._describe,
                self._keep,
                self._hand_over,
                self._copy_to,
            )
            if estate.listener is not None
            else None
        )

    def run(self) -> int:
        """Keeps it to its end; gives the exit status for this process."""
        if self._predecessor is None:
            self._receive()
        status = self._keeper.run()
        if not self._keeper.given_away:
            self._leave()
        return status

    def _receive(self) -> None:
        if self._reception is not None:
            self._reception.open()

    def _commit(self) -> bool:
        if self._predecessor is None:
            return True
        # The mount has outlived supervisors before; from the next line on it has to outlive the one that started us.
        outlive_parent()
        if not handover.commit(self._predecessor):
            return False
        self._estate.claim.update(pid=os.getpid(), container=container())
        self._receive()
        return True

    def _keep(self) -> None:
        outlive_parent()
        self._estate.claim.update(kept=True)

    def _current(self) -> Estate:
        return replace(self._estate, generation=self._keeper.generation, told=tuple(self._keeper.told))

    def _copy_to(self, keeper: Keeper, receiver: socket.socket) -> Copy | None:
        # Who has a copy takes the absence of this for our end.
        if not stand_as_keeper(self._estate.claim.fd):
            return None
        return Copy(self._current, keeper, receiver)

    def _hand_over(self, successor: socket.socket) -> bool:
        given = handover.give(self._current(), successor)
        if given and self._reception is not None:
            self._reception.end_copies()
        return given

    def _leave(self) -> None:
        """The mount has ended, or is dead from now on: then word of that stays."""
        claim, made = self._estate.claim, self._estate.made
        if self._reception is not None:
            with suppress(FileNotFoundError):
                os.unlink(claim.record.socket)
        if mounting.is_mounted(self._spec.mountpoint, made.number):
            claim.update(reason=self._keeper.reason or "its connection was cut while it was mounted")
        else:
            claim.clear()
        if self._reception is not None:
            self._reception.announce()
            self._reception.end_copies()

    def _describe(self) -> dict[str, Any]:
        keeper, spec, made = self._keeper, self._spec, self._estate.made
        return {
            "identity": str(spec.identity),
            "mountpoint": spec.mountpoint,
            "device": made.number,
            "read_only": spec.read_only,
            "pid": os.getpid(),
            "container": container(),
            "daemon": keeper.daemon,
            "generation": keeper.generation,
            "failures": keeper.failures,
            "passthrough": made.handshake.passthrough,
            "plain_reason": made.reason,
            "version": self._version,
            "settings": spec.settings,
            "kept": self._estate.claim.record.kept,
            "reason": self._estate.claim.record.reason,
        }


def make(spec: MountSpec, serve: Serve) -> Keeping:
    """Mounts. Raises IdentityBusy, MountError; then nothing is mounted."""
    layout = Layout(spec.ram_root)
    volume = layout.volume(spec.identity)
    if not os.path.isdir(volume.tree):
        raise MountError(f"volume {spec.identity} has no tree at {volume.tree}: it must be restored or made first")
    check_mountpoint(spec.mountpoint, spec.ram_root)  # first of all: this says what is there
    path = spec.keeper_socket or ""
    claim = take_claim(
        layout, volume.keeper, Record(str(spec.identity), spec.mountpoint, os.getpid(), path, container=container())
    )
    listener = None
    try:
        listener = listen(path) if path else None
        made = mounting.mount(spec)
    except BaseException:
        if listener is not None:
            os.unlink(path)
        claim.clear()
        raise
    claim.update(device=made.number)
    return Keeping(spec, serve, Estate(made, claim, listener, Safe(), 0, ()))


def take_over(spec: MountSpec, serve: Serve) -> Keeping:
    """Takes the mount of a running keeper over. Raises MountError; then that one goes on."""
    estate, predecessor = handover.take(spec)
    return Keeping(spec, serve, estate, predecessor)
