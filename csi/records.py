"""What is published on this node, on the host path: a small file for each volume, written before its mount is begun.

The mount table says what is mounted; these say for whom, which outlives every process of the driver, and a reboot.
A file is replaced as a whole or not at all. One that makes no sense says nothing, and is removed. Volumes are listed
while others are given and taken: what is half written, or has gone meanwhile, is no volume yet, or none any more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Final

import structlog

from csi.context import Pod
from csi.refusals import failed

log = structlog.get_logger(__name__)

_SUFFIX: Final = ".json"
_TEMPORARY: Final = ".tmp"
_LONGEST: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Publication:
    """A volume that a pod was given, or is about to be given."""

    volume_id: str
    target: str
    namespace: str
    pod: str
    pod_uid: str
    identity: str
    read_only: bool

    @property
    def owner(self) -> Pod:
        """Whose it is."""
        return Pod(self.namespace, self.pod, self.pod_uid)


class Records:
    """The files below ``directory``. Everything here blocks, briefly, and may be called from any thread."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def write(self, publication: Publication) -> None:
        """Says it, in place of what was said of that volume. Raises StatedError."""
        path = self._path(publication.volume_id)
        temporary = f"{path}{_TEMPORARY}"
        with self._of(publication.volume_id):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            with open(temporary, "w") as file:
                json.dump(asdict(publication), file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)

    def forget(self, volume_id: str) -> None:
        """Says nothing more of it. Raises StatedError."""
        path = self._path(volume_id)
        with self._of(volume_id):
            for one in (path, f"{path}{_TEMPORARY}"):
                with suppress(FileNotFoundError):
                    os.unlink(one)

    def find(self, volume_id: str) -> Publication | None:
        """What is said of a volume. Raises StatedError."""
        with self._of(volume_id):
            return _read(self._path(volume_id))

    @contextmanager
    def _of(self, volume_id: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise failed(
                f"the note of volume {volume_id} below {self._directory} on the node's disk cannot be read or "
                f"written: {error.strerror}; see to that disk, it is tried again"
            ) from error

    def __iter__(self) -> Iterator[Publication]:
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return
        for name in names:
            if name.endswith(_SUFFIX):
                path = os.path.join(self._directory, name)
                try:
                    found = _read(path)
                except OSError as error:
                    log.warning("record.unreadable", path=path, reason=error.strerror)
                    continue
                if found is not None:
                    yield found

    def _path(self, volume_id: str) -> str:
        # Of a caller's text: its digest is a name that leads nowhere else.
        return os.path.join(self._directory, hashlib.sha256(volume_id.encode()).hexdigest()[:32] + _SUFFIX)


def _read(path: str) -> Publication | None:
    """None where nothing is said. Raises OSError."""
    try:
        with open(path) as file:
            return Publication(**json.loads(file.read(_LONGEST)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        log.warning("record.unreadable", path=path, reason=str(error))
        with suppress(FileNotFoundError):
            os.unlink(path)
        return None
