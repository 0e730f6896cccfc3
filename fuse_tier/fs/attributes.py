"""The extended attributes of the mount: ours, which are computed, and the job's, which the tmpfs keeps.

Ours, on any file or directory: ``user.fuse_tier.state``, ``.hash`` (regular files whose content is known),
``.identity`` and ``.node``. Writing ``ram``, ``peer`` or ``bucket`` to ``user.fuse_tier.sync`` of a directory waits
until what the volume holds is there. No other name under that prefix can be written, and none can be removed.

Ours are read by name and never listed, so that ``cp -a``, ``rsync -X`` and ``tar --xattrs``, which copy what is
listed, neither trip over them nor carry them elsewhere.

The job's are those under ``user.``. Others are refused with EOPNOTSUPP, as on a filesystem without them: access
control lists and file capabilities would not be part of a snapshot.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

import structlog

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError
from fuse_tier.fs.content import Content
from fuse_tier.fs.handles import Handles
from fuse_tier.fs.link import Link
from fuse_tier.fs.nodes import ROOT, Nodes
from fuse_tier.fs.requests import Request
from fuse_tier.fs.spec import TIERS, MountSpec

log = structlog.get_logger(__name__)

OURS: Final = b"user.fuse_tier."
_SYNC: Final = OURS + b"sync"
_THEIRS: Final = b"user."
_SECURITY: Final = b"security."
_STATE_SECONDS: Final = 0.9  # getfattr is for people, who are not kept waiting, and it asks twice


class Attributes:
    """Extended attributes of one mount, by inode number."""

    def __init__(self, spec: MountSpec, nodes: Nodes, handles: Handles, content: Content, link: Link) -> None:
        self._spec = spec
        self._nodes = nodes
        self._handles = handles
        self._content = content
        self._link = link

    async def read(self, inode: int, name: bytes) -> bytes:
        """Raises OSError, ENODATA when there is no such attribute."""
        if name.startswith(OURS):
            return await self._read_ours(inode, name.removeprefix(OURS))
        if not name.startswith(_THEIRS):
            raise _error(errno.EOPNOTSUPP)
        with self._nodes.path(inode) as path:
            return os.getxattr(path, name)

    @staticmethod
    def is_never_there(name: bytes) -> bool:
        """Whether no file has it: nothing is looked up for what is asked at the first write to each file."""
        return name.startswith(_SECURITY)

    @staticmethod
    def is_stored(name: bytes) -> bool:
        """Whether it is one of the job's, which ``store`` sets; others are for ``request``."""
        return name.startswith(_THEIRS) and not name.startswith(OURS)

    def store(self, inode: int, name: bytes, value: bytes, flags: int, request: Request) -> None:
        """Sets one of the job's; ``flags`` as in setxattr(2). Raises OSError."""
        with self._nodes.path(inode) as path:
            begun = self._handles.word_of(request) is not None
            if flags == os.XATTR_CREATE and not begun and not _has(path, name):
                self._handles.leave_word(request, inode)
            try:
                os.setxattr(path, name, value, flags)
            except FileExistsError:
                if not begun:
                    raise

    async def request(self, inode: int, name: bytes, value: bytes) -> None:
        """Waits for a tier, if that is what is asked for. Raises OSError."""
        if name != _SYNC:
            raise _refusal(name)
        if not stat.S_ISDIR(self._nodes.status(inode).st_mode):
            raise _error(errno.EPERM)
        tier = value.decode("ascii", "replace").strip()
        if tier not in TIERS:
            raise _error(errno.EINVAL)
        await wait_until_durable(self._link, tier)

    def remove(self, inode: int, name: bytes, request: Request) -> None:
        """Removes one of the job's. Raises OSError."""
        if not self.is_stored(name):
            raise _refusal(name)
        with self._nodes.path(inode) as path:
            begun = self._handles.word_of(request) is not None
            if not begun and _has(path, name):
                self._handles.leave_word(request, inode)
            try:
                os.removexattr(path, name)
            except OSError as error:
                if not (begun and error.errno == errno.ENODATA):  # it is gone because we removed it
                    raise

    def names(self, inode: int) -> list[bytes]:
        """The job's. Raises OSError."""
        with self._nodes.path(inode) as path:
            listed = [os.fsencode(name) for name in os.listxattr(path)]
        return [name for name in listed if self.is_stored(name)]

    async def _read_ours(self, inode: int, name: bytes) -> bytes:
        if name == b"identity":
            return str(self._spec.identity).encode()
        if name == b"node":
            return os.fsencode(self._spec.node_socket)
        if name == b"state":
            return (await self._state(inode)).encode()
        if name == b"hash" and (known := await self._hash(inode)):
            return known.encode()
        raise _error(errno.ENODATA)

    async def _state(self, inode: int) -> str:
        regular = self._is_regular(inode)
        if regular and inode in self._handles.writing:
            return "dirty"
        answer = await self._ask_state(inode if regular else None)
        if answer:
            return answer["state"]
        return "dirty" if not regular and self._handles.writing else "sealed"

    async def _hash(self, inode: int) -> str:
        if not self._is_regular(inode) or inode in self._handles.writing:
            return ""
        known = self._content.known_hash(inode)
        if known is None:
            known = (await self._ask_state(inode)).get("hash", "")
        return known

    def _is_regular(self, inode: int) -> bool:
        return inode != ROOT and stat.S_ISREG(self._nodes.status(inode).st_mode)

    async def _ask_state(self, inode: int | None) -> dict[str, str]:
        if not self._link.is_up:
            return {}
        try:
            answer = await self._link.call("state", _STATE_SECONDS, inode=inode)
        except (FuseTierError, OSError) as error:
            log.info("state.unknown", reason=str(error))
            return {}
        return {"state": str(answer["state"]), "hash": str(answer["hash"])}


async def wait_until_durable(link: Link, tier: str) -> None:
    """Waits until what the volume holds now is on a tier. Raises OSError: ETIMEDOUT, or EIO."""
    try:
        # The worker gives up first, and so can say what it waited for.
        await link.call("sync", Deadline.SYNC + Deadline.CHANNEL_CALL, tier=tier, deadline_seconds=Deadline.SYNC)
    except DeadlineExceeded as error:
        log.warning("sync.timed_out", tier=tier, reason=str(error))
        raise _error(errno.ETIMEDOUT) from error
    except (FuseTierError, OSError) as error:
        log.warning("sync.failed", tier=tier, reason=str(error))
        raise _error(errno.EIO) from error


def _has(path: bytes, name: bytes) -> bool:
    try:
        os.getxattr(path, name)
    except OSError:  # whatever it is, the operation itself says so
        return False
    return True


def _refusal(name: bytes) -> OSError:
    return _error(errno.EPERM if name.startswith(OURS) else errno.EOPNOTSUPP)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
