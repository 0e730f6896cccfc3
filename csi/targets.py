"""Where kubelet wants a volume: which paths are taken from it, and that none leads elsewhere.

A target is ``<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount``, where kubelet may call the last part
otherwise, and nothing else is ever mounted on, or removed. Every directory below kubelet's own is opened by its name
without following symlinks, and used by that descriptor; what a pod could have put in its place is so never followed.

Invariant: the directory below a mount is one that nobody writes: its mode allows nobody, and where the filesystem can
it is immutable, which holds for root too. A job that runs without its mount fails, rather than write what is lost.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from csi.refusals import failed, malformed, not_now

_UID: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?")
_VOLUME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label, as Kubernetes names volumes
_PLUGIN: Final = "kubernetes.io~csi"
_FORBIDDEN_MODE: Final = 0o000
_LEAD: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FS_IOC_GETFLAGS: Final = 0x80086601  # linux/fs.h: _IOR('f', 1, long)
_FS_IOC_SETFLAGS: Final = 0x40086602  # linux/fs.h: _IOW('f', 2, long)
_FS_IMMUTABLE_FL: Final = 0x10


@dataclass(frozen=True, slots=True)
class Target:
    """One target path, which may not be there yet."""

    kubelet: str
    pod_uid: str
    volume: str
    name: str

    @classmethod
    def parse(cls, kubelet: str, path: str) -> Target:
        """Reads what kubelet asks for; ``kubelet`` is its directory. Raises StatedError (INVALID_ARGUMENT)."""
        inside = path.removeprefix(f"{kubelet.rstrip('/')}/pods/")
        parts = inside.split("/")
        fits = (
            inside != path
            and len(parts) == 5
            and parts[1:3] == ["volumes", _PLUGIN]
            and _UID.fullmatch(parts[0])
            and _VOLUME.fullmatch(parts[3])
            and _VOLUME.fullmatch(parts[4])
        )
        if not fits:
            raise malformed(
                f"target path {path!r} is no volume of a pod: only {kubelet}/pods/<uid>/volumes/{_PLUGIN}/<volume>/"
                "mount is mounted on or removed; if kubelet has another directory, tell the plugin with --kubelet"
            )
        return cls(kubelet.rstrip("/"), parts[0], parts[3], parts[4])

    @property
    def path(self) -> str:
        """As kubelet wrote it."""
        return f"{self.pod_directory}/volumes/{_PLUGIN}/{self.volume}/{self.name}"

    @property
    def pod_directory(self) -> str:
        """Goes when kubelet has done with the pod."""
        return f"{self.kubelet}/pods/{self.pod_uid}"

    def pod_is_gone(self) -> bool:
        """Whether kubelet has removed all of the pod. Blocks."""
        return not os.path.lexists(self.pod_directory)

    def prepare(self) -> None:
        """Makes the directory to mount on, one that nobody writes to. Blocks. Raises StatedError."""
        try:
            with self._parent(make=True) as parent:
                with suppress(FileExistsError):
                    os.mkdir(self.name, _FORBIDDEN_MODE, dir_fd=parent)
                self._forbid(parent)
        except OSError as error:
            raise self._unusable(error) from error

    def remove(self) -> None:
        """Removes the directory, which nothing is mounted on any more; it need not be there. Blocks.

        Raises StatedError, when there is something in it too: nothing of anybody's is ever removed.
        """
        try:
            with self._parent(make=False) as parent:
                self._permit(parent)
                os.rmdir(self.name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise not_now(
                    f"{self.path} is not empty, though nothing is mounted there: look at what was written beside the "
                    "mount, move it away, and the volume will be taken down"
                ) from error
            if error.errno == errno.EBUSY:
                raise not_now(f"{self.path} is still mounted in another namespace: it is tried again") from error
            raise self._unusable(error) from error

    @contextmanager
    def _parent(self, *, make: bool) -> Iterator[int]:
        """The directory that the target is in, come to without following a symlink."""
        fd = os.open(self.kubelet, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in ("pods", self.pod_uid, "volumes", _PLUGIN, self.volume):
                if make and name == self.volume:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o750, dir_fd=fd)
                below = os.open(name, _LEAD, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _forbid(self, parent: int) -> None:
        fd = os.open(self.name, _LEAD, dir_fd=parent)
        try:
            if os.fstat(fd).st_mode & 0o7777 != _FORBIDDEN_MODE:
                _set_immutable(fd, on=False)
                os.fchmod(fd, _FORBIDDEN_MODE)
            _set_immutable(fd, on=True)
        finally:
            os.close(fd)

    def _permit(self, parent: int) -> None:
        fd = os.open(self.name, _LEAD, dir_fd=parent)
        try:
            _set_immutable(fd, on=False)
        finally:
            os.close(fd)

    def _unusable(self, error: OSError) -> Exception:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return malformed(
                f"target path {self.path} leads through a symlink or a file: it is not followed; remove what was put "
                "there, and start the pod again"
            )
        if error.errno == errno.ENOENT:
            return not_now(
                f"target path {self.path} has no directory to be in: kubelet makes it before it asks; if it has "
                "removed the pod meanwhile, nothing is to be done"
            )
        return failed(
            f"target path {self.path} cannot be prepared or removed: {error.strerror}; see to kubelet's disk"
        )


def _set_immutable(fd: int, *, on: bool) -> None:
    """Where the filesystem has that flag, and we may set it; elsewhere the mode has to do."""
    flags = array.array("l", [0])
    with suppress(OSError):
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        wanted = flags[0] | _FS_IMMUTABLE_FL if on else flags[0] & ~_FS_IMMUTABLE_FL
        if wanted != flags[0]:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, array.array("l", [wanted]))
