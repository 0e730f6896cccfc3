"""Reading requests from /dev/fuse, having them done, and answering.

One task reads. It does a request itself, at once, and answers without a turn of trio's loop, as long as the request
waits for nothing; most never do. When one has to wait, its task goes on with it alone, and another task takes over
the reading. So what is written without an await in an operation is atomic for all other operations.

After an answer the next request is often microseconds away, nearer than the way to sleep and back: so the reader
asks again for a moment, if it lately paid, before it lets trio wait.
"""

from __future__ import annotations

import errno
import os
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Final, cast

import structlog
import trio

from fuse_tier.fs.requests import Request
from fuse_tier.mount.device import Device
from fuse_tier.mount.messages import READ_BUFFER_BYTES, REPLY, REQUEST, RESENT, Opcode

log = structlog.get_logger(__name__)

Answer = bytes | bytearray | memoryview | None
"""The body of a reply; None for a request that gets none."""
Operation = Callable[[Request, memoryview], Answer | Coroutine[Any, Any, Answer]]
"""Does a request at once, or gives what does it and may wait; raises OSError."""

_LINGER_NS: Final = 200_000
_TURN_NS: Final = 5_000_000  # after so long others in this process get a turn
# Signals of the one who waits end these with EINTR; all others are soon done, once they may begin (dispatch.py).
_INTERRUPTIBLE: Final = frozenset(
    {
        Opcode.OPEN,
        Opcode.WRITE,
        Opcode.FALLOCATE,
        Opcode.COPY_FILE_RANGE,
        Opcode.FSYNC,
        Opcode.FSYNCDIR,
        Opcode.SETXATTR,
        Opcode.GETXATTR,
    }
)
_NO_REPLY: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
_GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EPERM)


class Session:
    """The requests of one mount. ``serve`` answers them until the mount has ended."""

    def __init__(
        self, device: Device, operations: dict[int, Operation], undone: Callable[[Answer, Request], None]
    ) -> None:
        self._device = device
        self._operations = operations
        self._undone = undone
        self._buffer = bytearray(READ_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._waiting: dict[int, Request] = {}
        self._pays = False
        self._turn = 0

    async def serve(self) -> None:
        """Returns when the mount has ended (ENODEV); what waits then is still done. Raises OSError (ECONNABORTED)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, nursery)

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            size = await self._receive()
            if not size:
                return
            if await self._do(size, nursery):
                return

    async def _receive(self) -> int:
        """The size of the next request, which is in the buffer; 0 at the end."""
        fd, buffers = self._device.fd, [self._buffer]
        since = 0
        while True:
            try:
                size = os.readv(fd, buffers)
            except BlockingIOError:
                now = time.perf_counter_ns()
                since = since or now
                if now - self._turn > _TURN_NS:
                    await self._give_turn()
                elif self._pays and now - since < _LINGER_NS:
                    os.sched_yield()
                else:
                    await trio.lowlevel.wait_readable(fd)
                    self._turn = time.perf_counter_ns()
                    self._pays = self._turn - since < 2 * _LINGER_NS
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return 0
                if error.errno not in (errno.EINTR, errno.ENOENT):  # ENOENT: the request was aborted
                    raise
            else:
                if time.perf_counter_ns() - self._turn > _TURN_NS:
                    await self._give_turn()
                return size

    async def _give_turn(self) -> None:
        await trio.lowlevel.checkpoint()
        self._turn = time.perf_counter_ns()

    async def _do(self, size: int, nursery: trio.Nursery) -> bool:
        """Does a request; says whether it had to wait, in which case another task reads."""
        _, opcode, unique, node, uid, gid, pid, _ = REQUEST.unpack_from(self._buffer)
        body = self._view[REQUEST.size : size]
        if opcode == Opcode.INTERRUPT:
            self._interrupt(body)
            return False
        request = Request(opcode, unique, node, uid, gid, pid)
        if unique & RESENT:
            request.resent = True
        operation = self._operations.get(opcode)
        if operation is None:
            self._reply(request, errno.ENOSYS, b"")
            return False
        try:
            outcome = operation(request, body)
            if not isinstance(outcome, types.CoroutineType):
                answer = cast(Answer, outcome)
            elif opcode in _INTERRUPTIBLE:
                return await self._do_interruptibly(request, outcome, nursery)
            else:
                try:
                    trap = outcome.send(None)
                except StopIteration as done:
                    answer = done.value
                else:
                    nursery.start_soon(self._read, nursery)
                    self._waiting[request.unique] = request
                    try:
                        await self._finish(request, _resumed(outcome, trap))
                    finally:
                        del self._waiting[request.unique]
                    return True
        except OSError as error:
            self._refuse(request, error.errno or errno.EIO)
        except Exception:
            log.exception("operation.failed", operation=Opcode(opcode).name.lower())
            self._refuse(request, errno.EIO)
        else:
            if opcode not in _NO_REPLY:
                self._reply(request, 0, answer or b"")
        return False

    async def _do_interruptibly(
        self, request: Request, coroutine: Coroutine[Any, Any, Answer], nursery: trio.Nursery
    ) -> bool:
        waited = False

        def hand_over() -> None:
            nonlocal waited
            waited = True
            nursery.start_soon(self._read, nursery)

        with trio.CancelScope() as scope:
            request.ends = scope
            self._waiting[request.unique] = request
            try:
                await self._finish(request, _noticed(coroutine, hand_over))
            finally:
                del self._waiting[request.unique]
        if scope.cancelled_caught:
            self._reply(request, errno.EINTR, b"")
        return waited

    async def _finish(self, request: Request, answering: Awaitable[Answer]) -> None:
        try:
            answer = await answering
        except OSError as error:
            self._refuse(request, error.errno or errno.EIO)
        except Exception:
            log.exception("operation.failed", operation=Opcode(request.opcode).name.lower())
            self._refuse(request, errno.EIO)
        else:
            self._reply(request, 0, answer or b"")

    def _refuse(self, request: Request, code: int) -> None:
        if request.opcode not in _NO_REPLY:
            self._reply(request, code, b"")

    def _reply(self, request: Request, code: int, answer: bytes | bytearray | memoryview) -> None:
        if code:
            answer = b""
        header = REPLY.pack(REPLY.size + len(answer), -code, request.unique)
        try:
            os.writev(self._device.fd, [header, answer])
        except OSError as error:
            # Nobody waits for it any more: ENOENT; the mount has ended: the others.
            if error.errno not in (errno.ENOENT, *_GONE):
                log.exception("reply.refused", opcode=request.opcode, bytes=len(answer), code=code)
                os.writev(self._device.fd, [REPLY.pack(REPLY.size, -errno.EIO, request.unique)])
            self._undone(answer, request)

    def _interrupt(self, body: memoryview) -> None:
        request = self._waiting.get(int.from_bytes(body[:8], "little"))
        if request is not None and request.ends is not None:
            request.ends.cancel()


@types.coroutine
def _noticed(coroutine: Coroutine[Any, Any, Answer], waits: Callable[[], None]) -> Generator[Any, Any, Answer]:
    """Runs a coroutine in this task, and calls ``waits`` if it suspends, before the task does."""
    try:
        trap = coroutine.send(None)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    waits()
    return (yield from _resumed(coroutine, trap))


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, Answer], trap: Any) -> Generator[Any, Any, Answer]:
    """Goes on with a coroutine that has been started, and waits for ``trap``, in this task."""
    while True:
        try:
            sent = yield trap
        except BaseException as error:  # noqa: BLE001 - the coroutine's own
            resume: Callable[[], Any] = partial(coroutine.throw, error)
        else:
            resume = partial(coroutine.send, sent)
        try:
            trap = resume()
        except StopIteration as done:
            answer: Answer = done.value
            return answer
