"""What is published on this node, on the host path: a small file for each volume, written before its mount is begun.

The mount table says what is mounted; these say for whom, which outlives every process of the driver, and a reboot.
A file is replaced as a whole or not at all. One that cannot be read says nothing, and is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

import structlog

from csi.context import Pod

log = structlog.get_logger(__name__)

_SUFFIX: Final = ".json"
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
        """Says it, in place of what was said of that volume. Raises OSError."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        path = self._path(publication.volume_id)
        temporary = f"{path}.tmp"
        with open(temporary, "w") as file:
            json.dump(asdict(publication), file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)

    def forget(self, volume_id: str) -> None:
        """Says nothing more of it. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(volume_id))

    def find(self, volume_id: str) -> Publication | None:
        """What is said of a volume."""
        return self._read(self._path(volume_id))

    def __iter__(self) -> Iterator[Publication]:
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._directory)):
                path = os.path.join(self._directory, name)
                found = self._read(path) if name.endswith(_SUFFIX) else None
                if found is not None:
                    yield found
                elif name.endswith((_SUFFIX, ".tmp")):
                    log.warning("record.unreadable", path=path)
                    with suppress(FileNotFoundError):
                        os.unlink(path)

    def _path(self, volume_id: str) -> str:
        # Of a caller's text: its digest is a name that leads nowhere else.
        return os.path.join(self._directory, hashlib.sha256(volume_id.encode()).hexdigest()[:32] + _SUFFIX)

    @staticmethod
    def _read(path: str) -> Publication | None:
        try:
            with open(path) as file:
                return Publication(**json.loads(file.read(_LONGEST)))
        except (OSError, ValueError, TypeError):
            return None
