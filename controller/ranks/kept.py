"""Objects that say what the coordinator knows, and that nothing of ours reads: kept as they are to be.

What is written is the difference to what the API server has, which is watched: so nothing is asked of it where
nothing has changed, a server that starts anew finds what the one before left, and what somebody else changes is put
right. Objects of the same names that are not ours (they are not in what is watched) are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import structlog
import trio

from controller.driver.sameness import differences
from controller.watching import Collection, Object
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

MISSING_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 10.0

Key = tuple[str, str]  # namespace and name


class Kept:
    """Of one kind. A ``Follower`` of the API server."""

    def __init__(
        self,
        collection: Callable[[Kept], Collection],
        writer: Writer,
        place: Callable[[str], str],
        missing_seconds: float,
    ) -> None:
        """``collection`` is what is watched; ``place`` the path of a namespace's objects of this kind.

        One that is not wanted any more is removed after ``missing_seconds``: who wants it may just have changed.
        """
        self._collection = collection(self)
        self._writer = writer
        self._place = place
        self._missing_seconds = missing_seconds
        self._wanted: Mapping[Key, Object] | None = None  # None: nobody has told yet
        self._there: dict[str, Object] = {}  # by uid
        self._missing: dict[Key, float] = {}  # since when
        self._refused: dict[Key, Object] = {}
        self._changed = trio.Event()

    def want(self, wanted: Mapping[Key, Object]) -> None:
        """These are to be there, and no others."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._changed.set()

    def seen(self, found: Object) -> None:
        """See Follower."""
        self._there[found["metadata"]["uid"]] = found
        self._refused.pop(_key(found), None)
        self._changed.set()

    def lost(self, key: str) -> None:
        """See Follower."""
        self._there.pop(key, None)
        self._changed.set()

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
        there = {_key(one): one for one in self._there.values()}
        for key, wanted in self._wanted.items():
            self._missing.pop(key, None)
            if key in there and not differences(wanted, there[key]):
                continue
            if self._refused.get(key) != wanted and not await self._put(key, wanted, is_there=key in there):
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

    async def _put(self, key: Key, wanted: Object, *, is_there: bool) -> bool:
        """Whether there is nothing more to do."""
        namespace, name = key
        try:
            if is_there:
                written = await self._writer.apply(f"{self._place(namespace)}/{name}", wanted)
            else:
                written = await self._writer.create(self._place(namespace), wanted)
        except (Clash, TierRefused) as error:  # somebody else's of that name, or no such namespace
            self._refused[key] = wanted
            log.info("kept.refused", object="/".join(key), reason=str(error))
            return True
        except TierUnavailable as error:
            log.info("kept.not_written", object="/".join(key), reason=str(error))
            return False
        self._there[written["metadata"]["uid"]] = written
        return True

    async def _remove(self, key: Key, uid: str) -> bool:
        namespace, name = key
        try:
            await self._writer.delete(f"{self._place(namespace)}/{name}", uid=uid)
        except Gone:
            log.debug("kept.gone", object="/".join(key))
        except (TierUnavailable, TierRefused) as error:
            log.info("kept.not_removed", object="/".join(key), reason=str(error))
            return False
        self._there.pop(uid, None)
        self._missing.pop(key, None)
        return True


def _key(found: Object) -> Key:
    return found["metadata"]["namespace"], found["metadata"]["name"]
