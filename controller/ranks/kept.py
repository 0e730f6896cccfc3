"""Objects that say what the coordinator knows, and that nothing of ours reads: kept as they are to be.

What is written is the difference to what the API server has, which is watched: so nothing is asked of it where
nothing has changed, a server that starts anew finds what the one before left, and what somebody else changes is put
right. Objects of the same names that are not ours (they are not in what is watched) are left alone. Each object is
looked at when it is wanted otherwise, when it has changed, or when its time has come (``Agenda``), never all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
import trio

from controller.driver.sameness import differences
from controller.ranks.agenda import Agenda
from controller.watching import Collection, Object
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

MISSING_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 10.0  # what was refused is tried again: at first, and then ever more seldom,
_SELDOM_SECONDS: Final = 600.0  # at least so often

Key = tuple[str, str]  # namespace and name


class Kept:
    """Of one kind. A ``Follower`` of the API server."""

    def __init__(
        self,
        collection: Callable[[Kept], Collection],
        writer: Writer,
        place: Callable[[str], str],
        missing_seconds: float,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        """``collection`` is what is watched; ``place`` the path of a namespace's objects of this kind.

        One that is not wanted any more is removed after ``missing_seconds``: who wants it may just have changed.
        """
        self._collection = collection(self)
        self._writer = writer
        self._place = place
        self._missing_seconds = missing_seconds
        self._again_seconds = again_seconds
        self._wanted: Mapping[Key, Object] | None = None  # None: nobody has told yet
        self._there: dict[Key, Object] = {}
        self._keys: dict[str, Key] = {}  # by uid
        self._missing: dict[Key, float] = {}  # since when
        self._refused: dict[Key, int] = {}  # how often, since it last went well
        self._agenda: Agenda[Key] = Agenda()
        self._changed = trio.Event()

    def want(self, wanted: Mapping[Key, Object]) -> None:
        """These are to be there, and no others."""
        before = self._wanted
        if before is None:
            changed = wanted.keys() | self._there.keys()
        else:
            changed = {key for key in wanted.keys() | before.keys() if wanted.get(key) != before.get(key)}
        self._wanted = wanted
        self._look_at(*changed)

    def seen(self, found: Object) -> None:
        """See Follower."""
        self._look_at(self._keep(found))

    def lost(self, key: str) -> None:
        """See Follower."""
        if (gone := self._forget(key)) is not None:
            self._look_at(gone)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._collection.follow)
            while True:
                self._changed = trio.Event()
                if self._wanted is not None:
                    while (key := self._agenda.take(trio.current_time())) is not None:
                        await self._settle(key, self._wanted.get(key))
                with trio.move_on_at(self._agenda.next_at if self._wanted is not None else float("inf")):
                    await self._changed.wait()

    def _look_at(self, *keys: Key) -> None:
        for key in keys:
            self._refused.pop(key, None)  # it may go well now
            self._agenda.put(key)
        if keys:
            self._changed.set()

    async def _settle(self, key: Key, wanted: Object | None) -> None:
        """One object is made, changed or removed, if there is anything to do about it."""
        there = self._there.get(key)
        if wanted is not None:
            self._missing.pop(key, None)
            if there is None or differences(wanted, there):
                await self._put(key, wanted, there)
            return
        self._refused.pop(key, None)
        if there is None:
            self._missing.pop(key, None)
            return
        due = self._missing.setdefault(key, trio.current_time()) + self._missing_seconds
        if due > trio.current_time():
            self._agenda.put(key, due)
        else:
            await self._remove(key, _uid(there))

    async def _put(self, key: Key, wanted: Object, there: Object | None) -> None:
        namespace, name = key
        try:
            if there is None:
                written = await self._writer.create(self._place(namespace), wanted)
            else:  # that very one: somebody else may have made another of its name meanwhile
                only = {**wanted, "metadata": {**wanted["metadata"], "uid": _uid(there)}}
                written = await self._writer.apply(f"{self._place(namespace)}/{name}", only)
        except (Clash, TierRefused) as error:  # somebody else's of that name, or no such namespace
            self._try_again(key, "kept.refused", error)
        except TierUnavailable as error:
            self._try_again(key, "kept.not_written", error)
        else:
            self._refused.pop(key, None)
            self._keep(written)

    async def _remove(self, key: Key, uid: str) -> None:
        namespace, name = key
        try:
            await self._writer.delete(f"{self._place(namespace)}/{name}", uid=uid)
        except (Gone, Clash) as error:  # or it is another's by now, of which the watch tells if it is ours
            log.debug("kept.gone", object="/".join(key), reason=str(error))
        except (TierUnavailable, TierRefused) as error:
            self._try_again(key, "kept.not_removed", error)
            return
        self._forget(uid)
        self._missing.pop(key, None)

    def _try_again(self, key: Key, event: str, error: Exception) -> None:
        times = self._refused[key] = self._refused.get(key, 0) + 1
        pause = min(self._again_seconds * 2 ** min(times - 1, 10), _SELDOM_SECONDS)
        (log.info if times == 1 else log.debug)(event, object="/".join(key), reason=str(error), again_seconds=pause)
        self._agenda.put(key, trio.current_time() + pause)

    def _keep(self, found: Object) -> Key:
        key = (found["metadata"]["namespace"], found["metadata"]["name"])
        if (before := self._there.get(key)) is not None:
            self._keys.pop(_uid(before), None)
        self._there[key] = found
        self._keys[_uid(found)] = key
        return key

    def _forget(self, uid: str) -> Key | None:
        if (key := self._keys.pop(uid, None)) is not None:
            del self._there[key]
        return key


def _uid(found: Mapping[str, Any]) -> str:
    return str(found["metadata"]["uid"])
