"""Asking the node's supervisor, which alone makes mounts."""

from __future__ import annotations

from typing import Any, Final

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity
from fuse_tier.wire.channel import connected

_AGAIN_SECONDS: Final = 0.05


class Supervisor:
    """A connection for each question: they are rare, and either process may have been started anew."""

    def __init__(self, socket: str) -> None:
        self.socket = socket

    async def until_there(self) -> None:
        """Returns when it answers: then the RAM tier is there, which it makes."""
        while True:
            try:
                await self.mounts()
            except FuseTierError:
                await trio.sleep(_AGAIN_SECONDS)
            else:
                return

    async def check(self, identity: Identity, mountpoint: str) -> str:
        """Sees whether a mount could be made; gives the canonical mountpoint. Raises MountError, IdentityBusy."""
        asked = await self._ask("check", Deadline.MOUNT, identity=str(identity), mountpoint=mountpoint)
        return str(asked["mountpoint"])

    async def mount(self, identity: Identity, mountpoint: str, *, read_only: bool) -> None:
        """Mounts a volume whose tree stands. Raises MountError."""
        await self._ask("mount", Deadline.MOUNT, identity=str(identity), mountpoint=mountpoint, read_only=read_only)

    async def unmount(self, mountpoint: str) -> Identity:
        """Ends a mount; gives whose it was. Raises MountError."""
        return Identity.parse((await self._ask("unmount", Deadline.UNMOUNT, mountpoint=mountpoint))["identity"])

    async def detach(self, mountpoint: str) -> bool:
        """Ends the mount at ``mountpoint``, if any, whatever hangs; says whether nobody uses it any more.

        Raises MountError when the kernel refuses.
        """
        return bool((await self._ask("detach", Deadline.DETACH, mountpoint=mountpoint))["ended"])

    async def mounts(self) -> list[dict[str, Any]]:
        """The mounts there are: identity, mountpoint, pid, passthrough, state, reason."""
        mounts: list[dict[str, Any]] = await self._ask("mounts", Deadline.CHANNEL_CALL)
        return mounts

    async def _ask(self, name: str, deadline_seconds: float, **arguments: object) -> Any:
        async with connected(self.socket, {}) as channel:
            return await channel.call(name, deadline_seconds, **arguments)
