"""Which of several pods of the driver has a node: while one replaces another, both run.

Pods are told apart by what Kubernetes calls them (``FUSE_TIER_POD``, their uid). The one that came last has the node.
A container of an earlier one that is started again meanwhile finds its pod in the list, and not at the end: it waits
to be ended. Where no pod is named there is nobody to take turns with.
"""

from __future__ import annotations

import fcntl
import os
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
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        with open(self._path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            pods = file.read().split()
            if self._pod not in pods:
                pods = [*pods[-_REMEMBERED:], self._pod]
                file.truncate(0)
                file.write("\n".join(pods) + "\n")
                file.flush()
            return pods[-1] == self._pod

    async def until_superseded(self) -> None:
        """Returns when another pod has the node; never where no pod is named."""
        if not self._pod:
            await trio.sleep_forever()
        while self.take():  # noqa: ASYNC110 - nobody announces it
            await trio.sleep(_LOOK_EVERY_SECONDS)
