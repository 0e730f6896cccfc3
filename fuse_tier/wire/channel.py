"""A two-way call channel between processes of one node, over a unix stream socket.

Frames are a 4-byte big-endian length and that many bytes of JSON: ``{"id", "call", "args"}``,
``{"id", "ok"}``, ``{"id", "error": {"type", "message", "errno"}}``; a call without an id wants no answer.
Both ends may call. gRPC is not used here because a mount daemon has to stay small.

Calls are handled concurrently, each in its own task of the channel's nursery; a handler that fails answers
with its error and takes nothing else down. Every call has a deadline.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
import trio

from fuse_tier import errors
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError, InvalidRequest, TierUnavailable

log = structlog.get_logger(__name__)

MAX_FRAME_BYTES = 16 << 20
_LENGTH = struct.Struct(">I")

Arguments = dict[str, Any]
Handler = Callable[[Arguments], Awaitable[Any]]


class ChannelClosed(TierUnavailable):
    """The other process has gone."""


class Channel:
    """One connection. Made by ``connected`` or ``serve``; use ``call`` and ``notify``."""

    def __init__(self, stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
        self._stream = stream
        self._handlers = handlers
        self._sending = trio.Lock()
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._last_id = 0
        self.closed = trio.Event()

    async def call(self, name: str, deadline_seconds: float, /, **arguments: Any) -> Any:
        """Calls the other side. Raises what its handler raised, ChannelClosed, or DeadlineExceeded."""
        self._last_id += 1
        number = self._last_id
        answered = self._waiting[number] = trio.Event()
        try:
            with trio.move_on_after(deadline_seconds) as scope:
                await self._send({"id": number, "call": name, "args": arguments})
                await answered.wait()
            if scope.cancelled_caught:
                raise DeadlineExceeded(f"{name!r} was not answered within {deadline_seconds:g} s")
            answer = self._answers.pop(number, None)
        finally:
            del self._waiting[number]
            self._answers.pop(number, None)
        if answer is None:
            raise ChannelClosed(f"the process that was asked for {name!r} has ended: it is started again by itself")
        if "error" in answer:
            raise _rebuild(answer["error"])
        return answer.get("ok")

    async def notify(self, name: str, /, **arguments: Any) -> None:
        """Calls the other side and wants no answer. Raises ChannelClosed."""
        await self._send({"call": name, "args": arguments})

    async def run(self) -> None:
        """Reads frames until the other side closes. Owns every handler's task."""
        try:
            async with trio.open_nursery() as nursery:
                async for frame in self._frames():
                    if "call" in frame:
                        nursery.start_soon(self._answer, frame)
                    elif (number := frame.get("id")) in self._waiting:
                        self._answers[number] = frame
                        self._waiting[number].set()
                nursery.cancel_scope.cancel()
        finally:
            self.closed.set()
            for answered in self._waiting.values():
                answered.set()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _frames(self) -> AsyncIterator[dict[str, Any]]:
        pending = bytearray()
        while True:
            try:
                received = await self._stream.receive_some(1 << 16)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not received:
                return
            pending += received
            while len(pending) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(pending)
                if length > MAX_FRAME_BYTES:
                    log.error("channel.frame_too_long", bytes=length)
                    return
                if len(pending) < _LENGTH.size + length:
                    break
                frame = _parse(bytes(pending[_LENGTH.size : _LENGTH.size + length]))
                if frame is None:
                    log.error("channel.frame_malformed", bytes=length)
                    return
                del pending[: _LENGTH.size + length]
                yield frame

    async def _send(self, frame: dict[str, Any]) -> None:
        body = json.dumps(frame).encode()
        if len(body) > MAX_FRAME_BYTES:
            raise InvalidRequest(f"a message of {len(body)} bytes is longer than {MAX_FRAME_BYTES}")
        try:
            async with self._sending:
                # A frame cut in the middle would spoil all that follow it: so it is sent whole, or was the last.
                with trio.CancelScope(deadline=trio.current_time() + Deadline.CHANNEL_CALL, shield=True) as scope:
                    await self._stream.send_all(_LENGTH.pack(len(body)) + body)
                if scope.cancelled_caught:
                    await trio.aclose_forcefully(self._stream)
                    raise ChannelClosed(f"the other process has read nothing for {Deadline.CHANNEL_CALL:g} s")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelClosed("the other process has ended: it is started again by itself") from error

    async def _answer(self, frame: dict[str, Any]) -> None:
        name = frame["call"]
        answer: dict[str, Any] = {"id": frame.get("id")}
        try:
            handler = self._handlers.get(name)
            if handler is None:
                raise InvalidRequest(f"there is no call {name!r} here")
            answer["ok"] = await handler(frame.get("args", {}))
        except (FuseTierError, OSError) as error:
            answer["error"] = _describe(error)
            if "id" not in frame:  # nobody else gets to know
                log.warning("channel.notification_failed", call=name, reason=str(error))
        except Exception as error:
            log.exception("channel.handler_failed", call=name)
            answer["error"] = _describe(error)
        if "id" not in frame:
            return
        try:
            await self._send(answer)
        except ChannelClosed:
            log.debug("channel.answer_unwanted", call=name)
        except (InvalidRequest, TypeError, ValueError) as error:  # too long, or not to be said in JSON
            log.exception("channel.answer_impossible", call=name)
            with suppress(ChannelClosed):
                await self._send({"id": frame["id"], "error": _describe(error)})


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        frame = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


def _describe(error: Exception) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error), "errno": getattr(error, "errno", None)}


def _rebuild(description: dict[str, Any]) -> Exception:
    if isinstance(description["errno"], int) and not hasattr(errors, description["type"]):
        return OSError(description["errno"], description["message"])
    kind = getattr(errors, description["type"], None)
    if isinstance(kind, type) and issubclass(kind, FuseTierError) and kind is not errors.SnapshotConflict:
        return kind(description["message"])
    return FuseTierError(description["message"])


@asynccontextmanager
async def connected(path: str, handlers: Mapping[str, Handler]) -> AsyncIterator[Channel]:
    """A channel to the process that listens on the unix socket ``path``. Raises ChannelClosed.

    What the block raises comes out as it is, in no group.
    """
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise ChannelClosed(f"nobody answers on {path}: {error.strerror}") from error
    channel = Channel(stream, handlers)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run)
        try:
            yield channel
        except Exception as error:  # noqa: BLE001 - raised again below, where the nursery can't wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def serve(
    path: str,
    accept: Callable[[trio.SocketStream], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listens on the unix socket ``path``, the owner's alone; ``accept`` serves one connection to its end.

    A connection that fails takes no other down. The socket file is replaced if it is left from before; with
    ``nursery.start``, it is there when that returns.
    """
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        temporary = f"{path}.{os.getpid()}"
        with suppress(FileNotFoundError):  # in a container every life of a process may have the same number
            os.unlink(temporary)
        await listener.bind(temporary)
        os.chmod(temporary, 0o600)
        listener.listen(128)
        os.rename(temporary, path)
        task_status.started()

        async def serve_one(stream: trio.SocketStream) -> None:
            try:
                await accept(stream)
            except Exception:
                log.exception("channel.connection_failed", socket=path)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)

        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(serve_one, trio.SocketStream(connection))
