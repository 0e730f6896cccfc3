"""The vault: copies of all that this node's mounts are kept with, in a process that dies apart from the keepers.

It finds keepers by their sockets, asks each for a copy (fs/copy.py), and keeps that current. While a keeper lives,
that is all. When one ends without having said that its mount is over or another's, one of the node's vaults stands in
for it (mount/succession.py): it answers at the keeper's own socket, and gives everything to the first successor that
asks. Until then whoever uses the mount waits. The other vaults keep what they have, should that one die as well.

Invariants: it reads no request of the kernel's, and starts no daemon. It gives nothing away before the old daemon is
gone, which the end of that one's connection shows; and takes nothing out of that connection that the others lack.
"""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded
from fuse_tier.fs import handover
from fuse_tier.fs.copy import COPIED, ENDED, RENEWED
from fuse_tier.fs.handover import ASKED, FORM, LONGEST_MESSAGE, Estate
from fuse_tier.identity import Identity
from fuse_tier.mount.claim import read_record
from fuse_tier.mount.deposits import listen_aside
from fuse_tier.mount.succession import Heir, Holder, holder_of, inherit
from fuse_tier.node.keepers import socket_of

log = structlog.get_logger(__name__)

CONTAINER: Final = "vault"
"""What a vault that stands in says instead of where a keeper runs."""
_LOOK_EVERY_SECONDS: Final = 0.1
_LOOK_AGAIN_SECONDS: Final = 0.02
_PAUSE_SECONDS: Final = 0.2
_MOST_DESCRIPTORS: Final = 4
_JSON: Final = ord("{")


class Vault:
    """Holds copies for one node. ``run`` belongs in a nursery."""

    def __init__(self, place: str, patience_seconds: float = inf) -> None:
        self._place = place
        """The directory of the keepers' sockets."""
        self._patience_seconds = patience_seconds
        """So long it stands in for a keeper; then the mount ends."""
        self.stands_in = 0
        """For so many keepers."""
        self._held: dict[str, trio.Event] = {}  # by socket; set when the copy is complete
        self._look = trio.Event()

    async def run(self) -> None:
        """Until it is cancelled, which lets everything go."""
        async with trio.open_nursery() as nursery:
            while True:
                for path in await trio.to_thread.run_sync(self._sockets):
                    if path not in self._held:
                        self._held[path] = trio.Event()
                        nursery.start_soon(self._hold, path)
                with trio.move_on_after(_LOOK_EVERY_SECONDS):
                    await self._look.wait()
                self._look = trio.Event()

    @property
    def holds(self) -> int:
        """So many mounts it has complete copies of."""
        return sum(complete.is_set() for complete in self._held.values())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not self._held

    async def hold(self, identity: Identity) -> None:
        """Returns when there is a copy of a volume's mount, which was just made.

        Raises DeadlineExceeded: the kernel may be one on which nobody can take a mount over.
        """
        path = socket_of(self._place, identity)
        with trio.move_on_after(Deadline.HAND_OVER):
            while True:
                self._look.set()
                held = self._held.get(path)
                if held is not None and held.is_set():
                    return
                await trio.sleep(_LOOK_EVERY_SECONDS / 10)
        raise DeadlineExceeded(
            f"there was no copy of what {identity} is mounted with within {Deadline.HAND_OVER:g} s"
        )

    def _sockets(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [os.path.join(self._place, name) for name in os.listdir(self._place)]
        return []

    async def _hold(self, path: str) -> None:
        copy = _Copy()
        try:
            with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_SEQPACKET) as connection:
                await connection.connect(path)
                await connection.send(json.dumps({COPIED: FORM}).encode())
                await copy.receive(connection, self._held[path])
                if not self._held[path].is_set():
                    await trio.sleep(_PAUSE_SECONDS)  # it refuses, or is just ending
            with trio.move_on_after(self._patience_seconds) as patience:
                await self._inherit(copy)
            if patience.cancelled_caught:
                log.error("vault.gave_up", **copy.about, reason="nobody took its mount over: it ends")
        except (OSError, LookupError, TypeError, ValueError) as error:
            log.debug("vault.not_held", socket=path, reason=str(error))
            await trio.sleep(_PAUSE_SECONDS)
        finally:
            copy.close()
            del self._held[path]
            self._look.set()  # who has the mount now has perhaps nobody else's copy yet

    async def _inherit(self, copy: _Copy) -> None:
        """Keeps what a keeper has left, until another has it; gives it to that one if no other vault is first."""
        while copy.is_orphan():
            if copy.standing() is Holder.KEEPER:
                return  # it lives, and had no patience with us: it is asked again
            heir = copy.try_to_inherit()
            if heir is None:
                await trio.sleep(_LOOK_AGAIN_SECONDS)
                continue
            self.stands_in += 1
            try:
                log.warning("vault.stands_in", **copy.about, reason="its keeper has ended, and not its mount")
                await copy.drain()
                await copy.give_to_first()
                # Who has it says so in a moment; another vault may inherit only if that one has ended before.
                with trio.move_on_after(Deadline.HAND_OVER):
                    while copy.is_orphan():  # noqa: ASYNC110 - nobody announces it
                        await trio.sleep(_LOOK_AGAIN_SECONDS)
            finally:
                self.stands_in -= 1
                heir.close()


class _Copy:
    """Everything of one mount."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._estate: Estate | None = None
        self._missing = 0
        self._deposits: socket.socket | None = None
        self._ended = False

    @property
    def about(self) -> dict[str, str]:
        """For the log."""
        return {key: str(self._state.get(key, "")) for key in ("identity", "mountpoint")}

    async def receive(self, connection: trio.socket.SocketType, complete: trio.Event) -> None:
        """Takes all that the keeper tells, until it ends. Raises OSError, and what nonsense raises."""
        room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
        while True:
            try:
                message, ancillary, _, _ = await connection.recvmsg(LONGEST_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                return
            fds = [fd for _, _, content in ancillary for fd in array.array("i", content)]
            if not message:
                return
            self._take(message, fds)
            is_complete = self._estate is not None and self._deposits is not None and not self._missing
            if is_complete and not complete.is_set():
                complete.set()
                log.info("vault.holds", **self.about)

    def _take(self, message: bytes, fds: list[int]) -> None:
        if message[0] != _JSON:
            if self._estate is None:
                raise ValueError("a deposit came before everything else")
            self._missing = max(0, self._missing - 1)
            self._estate.safe.apply(message, fds[0] if fds else -1)
        elif message == ENDED:
            self._ended = True
        else:
            said = json.loads(message)
            if "form" in said:
                self._estate, self._missing = handover.read_estate(said, fds), said["deposits"]
            elif RENEWED in said and self._estate is not None:
                self._renew(said, fds[0])
            else:
                self._state = said

    def _renew(self, said: dict[str, Any], fd: int) -> None:
        if self._estate is None:
            raise ValueError("news came before everything else")
        if self._deposits is not None:
            self._deposits.close()
        self._deposits = socket.socket(fileno=fd)
        self._deposits.setblocking(False)
        self._estate = replace(self._estate, generation=said[RENEWED], told=tuple(said["told"]))

    def standing(self) -> Holder:
        """Who stands for the mount."""
        return Holder.NOBODY if self._estate is None else holder_of(self._estate.claim.fd)

    def try_to_inherit(self) -> Heir | None:
        """None while the keeper lives, or another vault stands in for it."""
        return None if self._estate is None else inherit(self._estate.claim.fd)

    def is_orphan(self) -> bool:
        """Whether the keeper has ended, and nobody else keeps its mount, which is there still, and known of."""
        if self._ended or self._missing or self._estate is None or self._deposits is None:
            return False
        if self._estate.made.device.is_over:  # it was unmounted meanwhile
            return False
        copied = self._estate.claim.record
        now = read_record(f"/proc/self/fd/{self._estate.claim.fd}")
        if now is None or now.reason or not now.kept:
            return False
        if (now.pid, now.container) != (copied.pid, copied.container):
            return False
        self._estate.claim.record = now
        return True

    async def drain(self) -> None:
        """Takes in what the daemon has sent last; returns when it is gone."""
        if self._estate is None or self._deposits is None:
            return
        listen_aside(self._deposits)
        while self._estate.safe.overhear(self._deposits):  # noqa: ASYNC110 - what stays in there hides its end
            await trio.sleep(_LOOK_AGAIN_SECONDS)

    async def give_to_first(self) -> None:
        """Answers at the keeper's socket until a successor has everything, or the mount has gone."""
        estate = self._estate
        if estate is None or estate.listener is None:
            return
        given = trio.Event()
        giving = trio.Lock()
        listener = trio.socket.fromfd(estate.listener.fileno(), socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Two of ours could give the same: only one keeper may be made of it.
        with listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when, given, nursery.cancel_scope)
                while True:
                    visitor, _ = await listener.accept()
                    nursery.start_soon(self._receive_visitor, visitor, giving, given)

    async def _end_when(self, given: trio.Event, scope: trio.CancelScope) -> None:
        """Given, or of no use: the mount ends while nobody keeps it, when somebody unmounts it."""
        while not given.is_set() and self.is_orphan():
            with trio.move_on_after(_LOOK_AGAIN_SECONDS):
                await given.wait()
        scope.cancel()

    async def _receive_visitor(self, visitor: trio.socket.SocketType, giving: trio.Lock, given: trio.Event) -> None:
        with visitor, suppress(OSError, ValueError):
            await self._tell_state(visitor)
            while message := await visitor.recv(LONGEST_MESSAGE):
                said = json.loads(message)
                if said.get("keep"):
                    await self._tell_state(visitor)
                elif said.get(ASKED) == FORM:
                    async with giving:
                        if not given.is_set() and await self._give(visitor):
                            given.set()
                    return
                else:
                    return

    async def _tell_state(self, visitor: trio.socket.SocketType) -> None:
        state = {**self._state, "pid": 0, "daemon": 0, "container": CONTAINER, "kept": True, "reason": ""}
        await visitor.send(json.dumps(state).encode())

    async def _give(self, visitor: trio.socket.SocketType) -> bool:
        if self._estate is None or not self.is_orphan():
            return False
        estate = replace(self._estate, generation=self._estate.generation + 1)
        successor = socket.fromfd(visitor.fileno(), socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Not cancelled: what is given is given. Deadline.HAND_OVER bounds each of its steps.
        return await trio.to_thread.run_sync(partial(handover.give, estate, successor))

    def close(self) -> None:
        """Lets everything go."""
        if self._deposits is not None:
            self._deposits.close()
        if self._estate is not None:
            self._estate.safe.close()
            if self._estate.listener is not None:
                self._estate.listener.close()
            os.close(self._estate.claim.fd)
            self._estate.made.device.close()
            self._estate = None
