"""Who has a volume mounted: one keeper at a time, whatever has become of the supervisor that started it.

A keeper holds the lock of its volume for as long as it or a daemon of its lives; with the mount it hands over the
lock, which so is never free in between. In the locked file stands where the mount is and how the keeper is found.
After the death of a keeper that stays, and tells of the dead mount.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import IdentityBusy, MountError
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.room import Reserve

_LONGEST: Final = 1 << 14
_PAGE: Final = 4096
_LOOK_AGAIN_SECONDS: Final = 0.01
_TIMES_TO_LOOK: Final = 10


@dataclass(frozen=True, slots=True)
class Record:
    """What a keeper says of its mount, for when it cannot be asked."""

    identity: str
    mountpoint: str
    pid: int
    socket: str
    """Where it answers; empty for nowhere."""
    device: int = 0
    """Of the mount, as in ``st_dev``; 0 before it is made."""
    kept: bool = False
    """Whoever asked for the mount knows that it is there."""
    reason: str = ""
    """Why the mount has failed; empty while it has not, and after a death that left no time to say why."""
    container: str = ""
    """Where ``pid`` is that process's number."""


class Claim:
    """The lock, held. It is given up with the last process that has its descriptor.

    The file's only page is allocated when it is taken, so that no later update fails because the tier is full.
    """

    def __init__(self, fd: int, record: Record) -> None:
        self.fd = fd
        self.record = record

    def update(self, **changes: object) -> None:
        """Says something else."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]
        self._write(json.dumps(asdict(self.record)).encode() + b"\n")

    def clear(self) -> None:
        """Says nothing any more: the mount has gone."""
        self._write(b"")

    def _write(self, content: bytes) -> None:
        # In this order there is always a first line; one that is read in the middle of this is read again.
        os.pwrite(self.fd, content, 0)
        os.ftruncate(self.fd, len(content))


def take_claim(layout: Layout, path: str, record: Record) -> Claim:
    """Locks the file at ``path``, on the tier of ``layout``; a keeper that holds it and is just ending is waited for.

    Raises IdentityBusy when it does not end, MountError.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise MountError(f"volume {record.identity} cannot be mounted: {path}: {error.strerror}") from error
    give_up = time.monotonic() + Deadline.HURRIED_STOP
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(fd)
                other = read_record(path)
                where = f" at {other.mountpoint}, by process {other.pid}" if other else ""
                raise IdentityBusy(
                    f"{record.identity} is mounted on this node already{where}: end that before it is mounted again"
                ) from None
            time.sleep(_LOOK_AGAIN_SECONDS)
        else:
            break
    claim = Claim(fd, record)
    try:
        Reserve(layout).write(claim.update, _PAGE)
    except OSError as error:
        os.close(fd)
        raise MountError(f"volume {record.identity} cannot be mounted: {path}: {error.strerror}") from error
    return claim


def read_record(path: str) -> Record | None:
    """What the file at ``path`` says; None for nothing."""
    for _ in range(_TIMES_TO_LOOK):
        try:
            with open(path, "rb") as file:
                line = file.readline(_LONGEST)
            return Record(**json.loads(line)) if line else None
        except OSError:
            return None
        except (ValueError, TypeError):
            time.sleep(_LOOK_AGAIN_SECONDS)
    return None


def is_held(path: str) -> bool:
    """Whether a keeper, or a daemon of its, lives."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def find_records(layout: Layout) -> Iterator[tuple[str, Record]]:
    """All that is said on a RAM tier, and in which files."""
    for path in sorted(glob.glob(os.path.join(glob.escape(layout.volumes), "*", "*", "*", "keeper"))):
        record = read_record(path)
        if record is not None:
            yield path, record


def forget_record(path: str) -> None:
    """Once the dead mount that it tells of is gone; only for who made sure that no keeper lives."""
    os.truncate(path, 0)
