"""Random operations while content of files is given up, and fetched back when they are opened. Daemons die, too."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from hypothesis.stateful import rule

from fuse_tier.blobs import Blob
from fuse_tier.errors import DeadlineExceeded
from fuse_tier.ram.remote import Refill, give_up
from fuse_tier.wire.channel import Arguments, ChannelClosed
from tests.fs.machine import paths
from tests.fs.mortal import MortalMachine
from tests.fs.mounted import PATIENCE_SECONDS, Mounted, Place
from tests.fs.oracle import Side
from tests.fs.worker import running_worker


class EvictingWorker:
    """Gives content up as a worker does, and keeps it in a bucket of its own. Its loop runs in another thread."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._bucket: dict[Blob, bytes] = {}
        self._busy = threading.Lock()
        self._loop: _Loop | None = None
        self.fetched = 0

    def start(self) -> None:
        """Returns when daemons can come to it."""
        self._loop = _Loop(self._place.socket, self._bring)

    def wait_for_daemon(self) -> None:
        """Returns when one has come, which tries again at ever longer intervals."""
        assert self._loop is not None
        self._loop.wait_for_daemon()

    def stop(self) -> None:
        """It ends, and another one may be started."""
        with self._busy:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.end()

    def give_up(self, path: bytes) -> Blob | None:
        """Gives up what a file holds, if it is sealed and nobody uses it; its content, if it was."""
        place = self._place
        try:
            found = os.lstat(os.path.join(os.fsencode(place.tree), path))
        except OSError:
            return None
        blob = place.pins.known_blob(found.st_ino) if stat.S_ISREG(found.st_mode) else None
        if blob is None or not blob.size or os.lstat(place.layout.blob(blob)).st_ino != found.st_ino:
            return None
        self._bucket[blob] = place.blob_content(blob)
        with self._busy:
            if self._loop is None or found.st_ino not in self._loop.retire(found.st_ino, blob):
                return None
            give_up(place.layout, place.volume, place.pins, found.st_ino, blob)
        return blob

    async def _bring(self, arguments: Arguments) -> dict[str, Any]:
        inode = int(arguments["inode"])
        marker = Path(self._place.volume.remote, str(inode))
        blob = Blob.parse(marker.readlink().name)
        incoming = Refill(self._place.volume, inode, "bucket").create(blob)
        os.pwrite(incoming.fd, self._bucket[blob], 0)
        incoming.accept()
        self.fetched += 1
        return {}


class _Loop:
    """A worker while it runs."""

    def __init__(self, socket: str, bring: Callable[[Arguments], Awaitable[Any]]) -> None:
        self._end = trio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=[self._serve, socket, bring])
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)

    async def _serve(self, socket: str, bring: Callable[[Arguments], Awaitable[Any]]) -> None:
        async with running_worker(socket) as self._worker:
            self._worker.answers["materialize"] = bring
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await self._end.wait()

    def wait_for_daemon(self) -> None:
        trio.from_thread.run(self._worker.heard, "hello", trio_token=self._token)

    def retire(self, inode: int, blob: Blob) -> list[int]:
        """What the daemon has marked."""
        return trio.from_thread.run(self._retire, inode, blob, trio_token=self._token)

    async def _retire(self, inode: int, blob: Blob) -> list[int]:
        if self._worker.channel is None:
            return []  # the daemon has not come yet
        try:
            inodes: list[int] = (await self._worker.ask("retire", files=[[inode, blob.name]]))["inodes"]
        except (ChannelClosed, DeadlineExceeded):
            return []  # the daemon has died; what it had marked is fetched, though it is still here
        return inodes

    def end(self) -> None:
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join(PATIENCE_SECONDS)


@contextmanager
def evicting_worker(place: Place) -> Iterator[EvictingWorker]:
    """Runs one until the block is left."""
    worker = EvictingWorker(place)
    worker.start()
    try:
        worker.wait_for_daemon()
        yield worker
    finally:
        worker.stop()


class EvictingMachine(MortalMachine):
    """``worker`` is set by a subclass."""

    worker: EvictingWorker

    def __init__(self, mounted: Mounted, reference: Path, number: int) -> None:
        super().__init__(mounted, reference, number)
        for size, path in enumerate((b"c", b"a/c", b"b/c"), 1):
            self.both(Side.open, path, os.O_WRONLY, 0)
            self.both(Side.pwrite, 0, 0, b"content" * 1000 * size)
            self.both(Side.close, 0)

    @rule(path=paths)
    def give_up(self, path: bytes) -> None:
        self.seal(path)
        blob = self.worker.give_up(os.path.join(os.fsencode(self.top), path))
        if blob is not None:
            self.happened("content is given up", repr(path))
            self.sealed = [one for one in self.sealed if one != blob]

    def teardown(self) -> None:
        for side in self.sides:
            side.close_all()
        for path in (b"a", b"b", b"c", b"a/c", b"b/c"):
            self.give_up(path)
        super().teardown()
