"""Which of several pods of the driver has a node: while one replaces another, both run.

Pods are told apart by what Kubernetes calls them (``FUSE_TIER_POD``, their uid). The one that came last has the node.
A container of an earlier one that is started again meanwhile finds its pod in the list, and not at the end: it waits
to be ended. Where no pod is named there is nobody to take turns with.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from typing import Final

import trio

from fuse_tier.mount.container import POD

VARIABLE: Final = POD
_REMEMBERED: Final = 1000
_LOOK_EVERY_SECONDS: Final = 0.2


class Turn:
    """This pod's, on the node with this socket."""

    def __init__(self, socket: str, pod: str | None = None) -> None:
        self._path = f"{socket}.pods"
        self._pod = os.environ.get(VARIABLE, "") if pod is None else pod

    def take(self) -> bool:
        """Whether the node is this pod's; it becomes so when no container of this pod has asked before.

        Blocks briefly. Raises OSError.
        """
        if not self._pod:
            return True
        directory = os.path.dirname(self._path)
        os.makedirs(directory, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pods = self._read()
            if self._pod not in pods:
                pods = [*pods[-_REMEMBERED:], self._pod]
                self._write(pods)
            return pods[-1] == self._pod
        finally:
            os.close(lock)

    def _read(self) -> list[str]:
        try:
            with open(self._path) as file:
                return file.read().split()
        except FileNotFoundError:
            return []

    def _write(self, pods: Sequence[str]) -> None:
        # As a whole: were the list lost here, an earlier pod that looks next would have the node.
        temporary = f"{self._path}.tmp"
        with open(temporary, "w") as file:
            file.write("\n".join(pods) + "\n")
        os.rename(temporary, self._path)

    async def until_superseded(self) -> None:
        """Returns when another pod has the node; never where no pod is named."""
        if not self._pod:
            await trio.sleep_forever()
        while self.take():  # noqa: ASYNC110 - nobody announces it
            await trio.sleep(_LOOK_EVERY_SECONDS)
