"""One volume's mount as the supervisor sees it: who keeps it, from its start or its discovery until its end.

A keeper starts its volume's daemon again when that dies, and nobody notices. A keeper that ends before its mount, or
gives up, leaves the mount in place, dead: the job then gets ENOTCONN from every call. Were the mount
taken away, the job would write on into the bare directory below, and lose that without an error; and one more
mount over it would not reach containers that run already. So only an unmount ends it.

What is cancelled here goes on there: the end of a supervisor ends no mount that was told to stay.
"""

from __future__ import annotations

from typing import Any

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError
from fuse_tier.fs.version import code_version
from fuse_tier.identity import Identity
from fuse_tier.mount.claim import Record, forget_record, is_held, read_record
from fuse_tier.mount.container import container
from fuse_tier.mount.table import mount_at
from fuse_tier.node import mounting
from fuse_tier.node.distant import DistantKeeper
from fuse_tier.node.forge import Forge
from fuse_tier.node.keepers import KeeperLink, socket_of
from fuse_tier.node.processes import Child, Process, describe
from fuse_tier.node.settings import DaemonSettings
from fuse_tier.node.vault import CONTAINER
from fuse_tier.ram.layout import Layout

log = structlog.get_logger(__name__)

_DEAD = "every access answers ENOTCONN until it is unmounted"
_LOOK_AGAIN_SECONDS = 0.05
_DYING_SECONDS = 2.0
"""What a daemon takes to die after its keeper, and a vault to stand in."""
_TRIES = 20


class MountedVolume:
    """A volume that is being mounted, is mounted, or whose mount is dead. ``nursery`` owns the link to its keeper."""

    def __init__(
        self,
        identity: Identity,
        mountpoint: str,
        settings: DaemonSettings,
        forge: Forge,
        nursery: trio.Nursery,
        *,
        read_only: bool,
    ) -> None:
        self.identity = identity
        self.mountpoint = mountpoint
        self.read_only = read_only
        self.kept = False
        """It has been mounted, and outlives the call that mounted it."""
        self.keeper: Process | None = None
        self.reason = ""
        """Why it has failed; empty while it has not."""
        self.ended = trio.Event()
        """Its keeper has ended, and what that means is known."""
        self.device = 0
        """Of its mount, as in ``st_dev``; 0 before it is made."""
        self._settings = settings
        self._forge = forge
        self._nursery = nursery
        self._passthrough = False
        self._plain_reason = ""
        self._record = Layout(settings.ram_root).volume(identity).keeper
        self._link = KeeperLink(socket_of(settings.place, identity))
        self._listening = trio.CancelScope()
        self._changing_hands = trio.Lock()

    def mounted(self) -> bool:
        """Whether its mount is still in place, alive or dead. Reads the mount table, which never hangs."""
        found = mount_at(self.mountpoint)
        return found is not None and found.is_ours and found.device == self.device

    def listed(self) -> dict[str, Any]:
        """As the supervisor's call ``mounts`` answers."""
        state = self._link.state
        return {
            "identity": str(self.identity),
            "mountpoint": self.mountpoint,
            "pid": self.keeper.pid if self.keeper is not None else None,
            "daemon": state.daemon if state is not None and not self.reason else 0,
            "restarts": state.generation if state is not None else 0,
            "version": state.version if state is not None else "",
            "passthrough": self._passthrough,
            "plain_reason": self._plain_reason,
            "state": "failed" if self.reason else "serving",
            "reason": self.reason,
        }

    async def start(self, task_status: trio.TaskStatus[None]) -> None:
        """Mounts it and keeps it to its end. Errors up to ``started`` are the caller's, then they are its own."""
        started = trio.current_time()
        child = await self._forge.start(self._told())
        self.keeper = child
        try:
            serving = await mounting.begin_serving(self.mountpoint, child)
            self.device = serving.mount.device
            self._passthrough, self._plain_reason = serving.passthrough, serving.plain_reason
            self._nursery.start_soon(self._listen)
            await self._link.keep()
            task_status.started()
            # If the caller went away at this very moment, this task is still the caller's, and cancelled.
            await trio.lowlevel.checkpoint_if_cancelled()
            self.kept = True
        except BaseException:
            self._listening.cancel()
            await child.destroy()
            child.close()
            await mounting.take_back(self.mountpoint)
            raise
        log.info(
            "volume.mounted",
            **self._about,
            pid=child.pid,
            passthrough=self._passthrough,
            seconds=round(trio.current_time() - started, 3),
        )
        await self._watch()

    async def adopt(self, record: Record, task_status: trio.TaskStatus[bool]) -> None:
        """Keeps to its end what was mounted by a supervisor before this one; ``started`` with whether it is there.

        A mount whose keeper is dead is there as well, and has failed; but not one that nobody ever knew of.
        """
        self.device = record.device
        self.keeper = await self._find_keeper()
        if self.keeper is None and not record.kept:
            await mounting.take_back(self.mountpoint)
        if self.keeper is None and not self.mounted():
            forget_record(self._record)
            task_status.started(False)
            return
        if self.keeper is not None:
            self._nursery.start_soon(self._listen)
            try:
                state = await self._link.keep()
                self.read_only = state.read_only
                self._passthrough, self._plain_reason = state.passthrough, state.plain_reason
            except DeadlineExceeded as error:
                log.warning("volume.keeper_silent", **self._about, pid=self.keeper.pid, reason=str(error))
        self.kept = True
        task_status.started(True)
        if self.keeper is None:
            self._note_end(None)
            return
        log.info("volume.adopted", **self._about, pid=self.keeper.pid)
        await self._watch()

    async def _find_keeper(self) -> Process | None:
        """None when there is none. One that is being taken over by another at this moment is found a moment later."""
        give_up = trio.current_time() + _DYING_SECONDS
        while is_held(self._record):
            record = read_record(self._record)
            if record is not None:
                here = record.container in ("", container())
                if not here or (self._settings.vaulted and trio.current_time() > give_up):
                    return DistantKeeper(self._record, record)
                try:
                    return Process("keeper", record.pid)
                except ProcessLookupError:
                    pass  # it was killed, and its daemon still dies; or its successor is about to say so
            await trio.sleep(_LOOK_AGAIN_SECONDS)
        return None

    async def _listen(self) -> None:
        with self._listening:
            await self._link.run()

    async def _watch(self) -> None:
        try:
            while True:
                keeper = self.keeper
                if keeper is None:
                    return
                status = await keeper.wait()
                async with self._changing_hands:
                    if self.keeper is not keeper:
                        keeper.close()
                        continue
                    left = await self._find_in_vault()
                    if left is None:
                        break
                    self.keeper = left
                    keeper.close()
                self._nursery.start_soon(self.upgrade_at_last)
        finally:
            self._listening.cancel()
            if self.keeper is not None:
                self.keeper.close()
        try:
            self._note_end(status)
        except OSError:
            log.exception("volume.unclear", **self._about)

    async def _find_in_vault(self) -> Process | None:
        """Who has the mount after its keeper's death, where somebody may: the lock is held on then."""
        if not self._settings.vaulted or not self.mounted():
            return None
        with trio.move_on_after(_DYING_SECONDS):
            while is_held(self._record):
                state = self._link.state
                if state is not None and state.container == CONTAINER:
                    record = read_record(self._record)
                    return DistantKeeper(self._record, record) if record is not None else None
                await trio.sleep(_LOOK_AGAIN_SECONDS)
        return None

    async def upgrade_at_last(self) -> None:
        """Takes over from a keeper that is not of this container, however often that has to be tried."""
        for _ in range(_TRIES):
            await self.upgrade()
            if self.ended.is_set() or not isinstance(self.keeper, DistantKeeper):
                return
            await trio.sleep(_LOOK_AGAIN_SECONDS)

    def _note_end(self, status: int | None) -> None:
        if self.mounted():
            said = read_record(self._record)
            why = said.reason if said is not None and said.reason else f"its keeper {describe(status)}"
            self.reason = f"{why}: {_DEAD}"
            log.error("volume.failed", **self._about, reason=self.reason)
        elif status:
            log.warning("volume.unmounted", **self._about, reason=f"its keeper {describe(status)}")
        else:
            log.info("volume.unmounted", **self._about)
        self.ended.set()

    def forget(self) -> None:
        """Its mount has gone, and so does the word of it, unless it is mounted elsewhere meanwhile."""
        if self.reason and not is_held(self._record):
            forget_record(self._record)

    @property
    def is_outdated(self) -> bool:
        """Whether it is kept by other code than this, or with other settings."""
        state = self._link.state
        if self.ended.is_set():
            return False
        if isinstance(self.keeper, DistantKeeper):
            return self._settings.vaulted
        if state is None:
            return False
        return (state.version, state.settings) != (code_version(), self._settings.changeable())

    async def upgrade(self) -> None:
        """Has a new keeper take the mount over, while it is used. If that fails the old one goes on."""
        async with self._changing_hands:
            if self.ended.is_set():
                return
            started = trio.current_time()
            child = await self._forge.start(self._told(take_over=self._link.path))
            try:
                failure = await self._await_takeover(child)
            except BaseException:
                child.close()  # it has the mount by now, or dies with us
                raise
            if failure:
                log.warning("volume.not_upgraded", **self._about, reason=f"{failure}: the old keeper goes on")
                await child.destroy()
                child.close()
                return
            self.keeper = child
            log.info(
                "volume.upgraded",
                **self._about,
                pid=child.pid,
                version=code_version(),
                seconds=round(trio.current_time() - started, 3),
            )

    async def _await_takeover(self, child: Child) -> str:
        """Why it has failed; empty when it has not."""
        with trio.move_on_after(Deadline.DAEMON_START):
            try:
                said = await child.next_line()
            except FuseTierError as error:
                return str(error)
            if said is None:
                return f"the new keeper {describe(await child.wait())}: see its log"
            return str(mounting.reported(self.mountpoint, said["error"])) if "error" in said else ""
        return f"the new keeper did not serve within {Deadline.DAEMON_START:g} s: see its log"

    @property
    def _about(self) -> dict[str, str]:
        return {"identity": str(self.identity), "mountpoint": self.mountpoint}

    def _told(self, take_over: str | None = None) -> str:
        return self._settings.tell(
            self.identity, self.mountpoint, self._link.path, read_only=self.read_only, take_over=take_over
        )
