"""``kubectl get checkpoints``: an object for each complete checkpoint of a job, in the job's namespace.

They say what the coordinator knows, and nothing reads them but people. What is written is the difference to what the
API server has, which is watched: so nothing is asked of it where nothing has changed, a server that starts anew finds
what the one before left, and what somebody else changes is put right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import structlog
import trio
from kubernetes.client import ApiClient

from controller.driver.names import GROUP
from controller.driver.sameness import differences
from controller.watching import Collection, Object
from controller.writing import Gone, Writer
from fuse_tier.coordinate.milestones import Observer
from fuse_tier.errors import TierRefused, TierUnavailable
from fuse_tier.quantities import format_size
from fuse_tier.standing import Standing

log = structlog.get_logger(__name__)

COLLECTION: Final = f"/apis/{GROUP}/v1/checkpoints"
_MISSING_SECONDS: Final = 60.0  # until one is removed: who tells of the bucket may just have changed
_AGAIN_SECONDS: Final = 10.0
_NO_NAME: Final = re.compile(r"[^a-z0-9.-]+")
_LONGEST_NAME: Final = 200

Key = tuple[str, str]  # namespace and name


def objects_of(standings: Iterable[Standing]) -> dict[Key, Object]:
    """What is to be there, by namespace and name."""
    listed = list(standings)
    names = Counter((one.job.namespace, _name(one)) for one in listed)
    found: dict[Key, Object] = {}
    for one in listed:
        name = _name(one)
        if names[one.job.namespace, name] > 1:  # another run of the job, or another shape
            name += f"-{sha256(repr((one.job, one.run, one.ranks, one.step)).encode()).hexdigest()[:8]}"
        found[one.job.namespace, name] = {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Checkpoint",
            "metadata": {"name": name, "namespace": one.job.namespace},
            "status": _status(one),
        }
    return found


def _name(one: Standing) -> str:
    run = "" if one.run == one.job.workload else f"-{one.run}"
    step = "newest" if one.step is None else str(one.step)
    text = _NO_NAME.sub("-", f"{one.job.workload}{run}".lower())[:_LONGEST_NAME].strip("-.")
    return f"{text}-{step}"


def _status(one: Standing) -> Mapping[str, Any]:
    saved = datetime.fromtimestamp(one.created_ns // 10**9, UTC)
    return {
        "job": one.job.workload,
        "run": one.run,
        **({} if one.step is None else {"step": one.step}),
        "ranks": one.ranks,
        "tiers": ",".join(one.tiers),
        "size": format_size(one.size),
        "bytes": one.size,
        "restorable": one.restorable,
        "savedAt": saved.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


class Checkpoints(Observer):
    """Keeps the objects of a cluster. A ``Follower`` of the API server, too."""

    def __init__(self, api: ApiClient, writer: Writer, missing_seconds: float = _MISSING_SECONDS) -> None:
        self._collection = Collection(api, COLLECTION, self, may_lack=True)
        self._writer = writer
        self._missing_seconds = missing_seconds
        self._wanted: dict[Key, Object] | None = None  # None: nobody has told yet
        self._there: dict[str, Object] = {}  # by uid
        self._missing: dict[Key, float] = {}  # since when
        self._refused: dict[Key, Object] = {}
        self._is_followed = False
        self._changed = trio.Event()

    # ---- what is wanted ----

    def complete(self, standings: Sequence[Standing]) -> None:
        """See Observer."""
        wanted = objects_of(standings)
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    # ---- what is there ----

    def seen(self, found: Object) -> None:
        """See Follower."""
        self._there[found["metadata"]["uid"]] = found
        self._changed.set()

    def lost(self, key: str) -> None:
        """See Follower."""
        self._there.pop(key, None)
        self._changed.set()

    # ---- what is done ----

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._collection.follow)
            while True:
                self._changed = trio.Event()
                pause = await self._write()
                with trio.move_on_after(pause):
                    await self._changed.wait()

    async def _write(self) -> float:
        """Writes what differs; gives after how many seconds there is something to do, if nothing changes before."""
        if self._wanted is None:
            return float("inf")
        pause, now = float("inf"), trio.current_time()
        there = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in self._there.values()}
        for key, wanted in self._wanted.items():
            self._missing.pop(key, None)
            if key in there and not differences(wanted, there[key]):
                continue
            if self._refused.get(key) != wanted and not await self._put(key, wanted):
                pause = _AGAIN_SECONDS
        for key in there.keys() - self._wanted.keys():
            left = self._missing.setdefault(key, now) + self._missing_seconds - now
            if left > 0:
                pause = min(pause, left)
            elif not await self._remove(key, there[key]["metadata"]["uid"]):
                pause = min(pause, _AGAIN_SECONDS)
        self._missing = {key: since for key, since in self._missing.items() if key in there}
        self._refused = {key: one for key, one in self._refused.items() if key in self._wanted}
        return pause

    async def _put(self, key: Key, wanted: Object) -> bool:
        """Whether there is nothing more to do. What comes of it the watch tells."""
        try:
            written = await self._writer.apply(_path(key), wanted)
        except TierUnavailable as error:
            log.info("checkpoint.not_written", checkpoint="/".join(key), reason=str(error))
            return False
        except TierRefused as error:  # no such namespace, most often: the volume is of no pod
            self._refused[key] = wanted
            log.info("checkpoint.refused", checkpoint="/".join(key), reason=str(error))
            return True
        self._there[written["metadata"]["uid"]] = written
        return True

    async def _remove(self, key: Key, uid: str) -> bool:
        try:
            await self._writer.delete(_path(key), uid=uid)
        except Gone:
            log.debug("checkpoint.gone", checkpoint="/".join(key))
        except (TierUnavailable, TierRefused) as error:
            log.info("checkpoint.not_removed", checkpoint="/".join(key), reason=str(error))
            return False
        self._there.pop(uid, None)
        self._missing.pop(key, None)
        return True


def _path(key: Key) -> str:
    namespace, name = key
    return f"/apis/{GROUP}/v1/namespaces/{namespace}/checkpoints/{name}"
