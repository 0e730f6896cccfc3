"""A container that is started again in its place is noticed when it first looks at the root of its volume.

Nobody tells the driver of it: the mount stays, and kubelet calls nobody. But a request names the process that waits
for it, and so the container. When all of a pod's containers are gone that have made names at the root, and another
one asks for the root or a name in it, the job begins again: that request is held, and all like it, until the worker
has agreed with the other ranks of the job on a step, and the tree is that of the step. So no process of the
new container sees anything else; who does not want to wait for it can be interrupted and killed, and the job begins
again all the same. A container that comes while one of those is at work is one beside it, and not held; nor does one
count that only reads or removes what others have made. One that writes below the root alone, a log perhaps, begins
nothing by its end; but while it is at work nothing is moved under it.

Files that are open stay what they are; of names at the root the kernel keeps none (arranging.py).
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable, Mapping
from struct import Struct
from typing import Final

import structlog
import trio

from fuse_tier.errors import FuseTierError
from fuse_tier.fs.containers import Containers
from fuse_tier.fs.nodes import ROOT
from fuse_tier.fs.requests import Request
from fuse_tier.mount.messages import Opcode
from fuse_tier.ram import lives
from fuse_tier.ram.layout import VolumeLayout

log = structlog.get_logger(__name__)

LOOKS: Final = frozenset({Opcode.LOOKUP, Opcode.OPENDIR})
_RENAMES: Final = frozenset({Opcode.RENAME, Opcode.RENAME2})
MAKES: Final = _RENAMES | {
    Opcode.MKNOD,
    Opcode.MKDIR,
    Opcode.SYMLINK,
    Opcode.LINK,
    Opcode.CREATE,
    Opcode.TMPFILE,
}
ASKS: Final = LOOKS | MAKES | {Opcode.OPEN}
_FLAGS: Final = Struct("=I")  # of open(2), the first of what a request to open has


class _Meeting:
    """What those wait for who are in a container that is met for the first time."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.failure: OSError | None = None


class Lives:
    """The containers of one mount's pod. ``run`` belongs in a nursery."""

    def __init__(
        self,
        volume: VolumeLayout,
        containers: Containers,
        writers: Mapping[str, bool],
        begin_again: Callable[[], Awaitable[object]],
    ) -> None:
        """``writers`` are noted (``ram/lives.py``); ``begin_again`` has the worker give the tree its step.

        That raises FuseTierError.
        """
        self._volume = volume
        self._containers = containers
        self._writers = dict(writers)  # and whether they have made names at the root
        self._known: set[str] = set()
        self._begin_again = begin_again
        self._meetings: dict[str, _Meeting] = {}
        self._comes, self._coming = trio.open_memory_channel[str](math.inf)

    def admits(self, request: Request, body: memoryview) -> bool:
        """Whether a request may go on at once; if not, it may after ``admit``."""
        is_at_root = request.node == ROOT or request.opcode in _RENAMES
        writes = request.opcode in MAKES or (request.opcode == Opcode.OPEN and _opens_for_writing(body))
        if not is_at_root and not writes:
            return True
        container = self._containers.container_of(request.pid)
        if container is None:
            return True
        if is_at_root and container not in self._known:
            return False
        if writes:
            self._note(container, is_at_root=is_at_root)
        return True

    async def admit(self, request: Request) -> None:
        """Returns when the container's processes may see the root. Raises OSError when no step was given to it."""
        container = self._containers.container_of(request.pid)
        if container is None:  # it has ended since
            return
        if container not in self._known:
            meeting = self._meetings.get(container)
            if meeting is None:
                meeting = self._meetings[container] = _Meeting()
                self._comes.send_nowait(container)
            await meeting.over.wait()
            if meeting.failure is not None:
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from meeting.failure
        if request.opcode in MAKES:
            self._note(container, is_at_root=True)

    async def run(self) -> None:
        """Meets containers, one after another, whether or not somebody still waits. Goes on until cancelled."""
        async for container in self._coming:
            meeting = self._meetings[container]
            try:
                await self._meet(container)
                self._known.add(container)
            except OSError as error:
                meeting.failure = error
            del self._meetings[container]
            meeting.over.set()

    async def _meet(self, container: str) -> None:
        before = self._writers.keys() - {container}
        savers = sorted(one for one, at_root in self._writers.items() if at_root)
        if not savers or container in savers:
            return
        if await trio.to_thread.run_sync(self._containers.any_lives, before):
            return
        log.info("container.begins_again", container=container, before=savers)
        try:
            await self._begin_again()
        except (FuseTierError, OSError) as error:
            log.error("container.not_admitted", container=container, reason=str(error))
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        for one in before:
            del self._writers[one]
        lives.write(self._volume, self._writers)

    def _note(self, container: str, *, is_at_root: bool) -> None:
        known = self._writers.get(container)
        if known is None or (is_at_root and not known):
            self._writers[container] = is_at_root
            lives.write(self._volume, self._writers)


def _opens_for_writing(body: memoryview) -> bool:
    (flags,) = _FLAGS.unpack_from(body)
    return bool(flags & os.O_ACCMODE != os.O_RDONLY)
