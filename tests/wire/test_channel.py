from __future__ import annotations

import errno
import json
import os
import stat
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fuse_tier.errors import (
    DeadlineExceeded,
    FuseTierError,
    InvalidRequest,
    MountError,
    NotFound,
    SnapshotConflict,
    TierFull,
)
from fuse_tier.wire.channel import MAX_FRAME_BYTES, Arguments, Channel, ChannelClosed, Handler, connected, serve
from tests.harness.logs import ExpectedLogs


class Server:
    """Serves handlers on a socket, and knows the channels to its clients."""

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        self.path = path
        self.channels: list[Channel] = []
        self._handlers = handlers

    async def accept(self, stream: trio.SocketStream) -> None:
        channel = Channel(stream, self._handlers)
        self.channels.append(channel)
        await channel.run()


@asynccontextmanager
async def served(path: Path, **handlers: Handler) -> AsyncIterator[Server]:
    server = Server(str(path), handlers)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, server.path, server.accept)
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.sock"


async def echo(arguments: Arguments) -> Any:
    return arguments


async def block(_: Arguments) -> Any:
    await trio.sleep_forever()


async def test_a_call_is_answered(path: Path) -> None:
    async with served(path, echo=echo) as server, connected(server.path, {}) as channel:
        assert await channel.call("echo", 5, text="é", number=1, name="x") == {"text": "é", "number": 1, "name": "x"}
        assert await channel.call("echo", 5) == {}


async def test_both_sides_may_call(path: Path) -> None:
    async def twice(arguments: Arguments) -> Any:
        return await server.channels[0].call("echo", 5, number=2 * arguments["number"])

    async with served(path, twice=twice) as server, connected(server.path, {"echo": echo}) as channel:
        assert await channel.call("twice", 5, number=21) == {"number": 42}


async def test_calls_do_not_wait_for_each_other(path: Path) -> None:
    async with (
        served(path, echo=echo, block=block) as server,
        connected(server.path, {}) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(channel.call, "block", 60)
        assert await channel.call("echo", 5, number=1) == {"number": 1}
        nursery.cancel_scope.cancel()


async def test_many_calls_at_once_get_their_own_answers(path: Path) -> None:
    async with served(path, echo=echo) as server, connected(server.path, {}) as channel:

        async def ask(number: int) -> None:
            assert await channel.call("echo", 30, number=number, padding="x" * 10_000) == {
                "number": number,
                "padding": "x" * 10_000,
            }

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)


async def test_a_notification_arrives(path: Path) -> None:
    arrived, told = trio.Event(), []

    async def changed(arguments: Arguments) -> None:
        told.append(arguments)
        arrived.set()

    async with served(path, changed=changed) as server, connected(server.path, {}) as channel:
        await channel.notify("changed", counter=3)
        with trio.fail_after(10):
            await arrived.wait()
    assert told == [{"counter": 3}]


async def test_a_notification_that_fails_is_told_where_it_was_handled(
    path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("channel.notification_failed")

    async def changed(_: Arguments) -> None:
        raise NotFound("no such volume")

    async with served(path, changed=changed, echo=echo) as server, connected(server.path, {}) as channel:
        await channel.notify("changed")
        await channel.call("echo", 5)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MountError("busy"), MountError),
        (TierFull("no room"), TierFull),
        (DeadlineExceeded("slow"), DeadlineExceeded),
        (SnapshotConflict("taken", 7), FuseTierError),
        (FileNotFoundError(errno.ENOENT, "gone"), FileNotFoundError),
        (OSError(errno.EIO, "broken"), OSError),
    ],
)
async def test_what_a_handler_raises_is_raised_at_the_caller(
    path: Path, raised: Exception, expected: type[Exception]
) -> None:
    async def fail(_: Arguments) -> None:
        raise raised

    async with served(path, fail=fail, echo=echo) as server, connected(server.path, {}) as channel:
        with pytest.raises(expected) as caught:
            await channel.call("fail", 5)
        assert str(raised) in str(caught.value)
        assert getattr(caught.value, "errno", None) == getattr(raised, "errno", None)
        assert await channel.call("echo", 5, still="there") == {"still": "there"}


async def test_what_a_caller_does_not_catch_leaves_its_connection_as_it_is_and_in_no_group(path: Path) -> None:
    async def refuse(_: Arguments) -> None:
        raise InvalidRequest("no")

    async with served(path, refuse=refuse) as server:
        with pytest.raises(InvalidRequest, match="no"):
            async with connected(server.path, {}) as channel:
                await channel.call("refuse", 5)


async def test_a_handler_with_a_bug_takes_nothing_else_down(path: Path, expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("channel.handler_failed")

    async def fail(_: Arguments) -> None:
        raise ZeroDivisionError("a bug")

    async with served(path, fail=fail, echo=echo) as server, connected(server.path, {}) as channel:
        with pytest.raises(FuseTierError, match="a bug"):
            await channel.call("fail", 5)
        assert await channel.call("echo", 5) == {}


async def test_an_answer_that_cannot_be_sent_is_an_error_of_that_call_alone(
    path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("channel.answer_impossible")

    async def too_long(_: Arguments) -> Any:
        return "x" * (MAX_FRAME_BYTES + 1)

    async def no_json(_: Arguments) -> Any:
        return {1, 2}

    async with (
        served(path, too_long=too_long, no_json=no_json, echo=echo) as server,
        connected(server.path, {}) as channel,
    ):
        with pytest.raises(InvalidRequest, match="longer than"):
            await channel.call("too_long", 10)
        with pytest.raises(FuseTierError, match="not JSON serializable"):
            await channel.call("no_json", 10)
        assert await channel.call("echo", 5) == {}


async def test_a_call_that_nobody_knows_is_refused(path: Path) -> None:
    async with served(path) as server, connected(server.path, {}) as channel:
        with pytest.raises(InvalidRequest, match="no call 'frobnicate'"):
            await channel.call("frobnicate", 5)


async def test_a_call_has_a_deadline_and_the_channel_outlives_it(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with served(path, block=block, echo=echo) as server, connected(server.path, {}) as channel:
        with pytest.raises(DeadlineExceeded, match="'block' was not answered within 5 s"):
            await channel.call("block", 5)


async def test_the_end_of_the_other_process_ends_every_call(path: Path) -> None:
    async def hang_up(_: Arguments) -> None:
        await trio.aclose_forcefully(server.channels[0]._stream)

    async with served(path, block=block, hang_up=hang_up) as server, connected(server.path, {}) as channel:
        refused: list[str] = []

        async def ask(name: str) -> None:
            with pytest.raises(ChannelClosed) as caught:
                await channel.call(name, 30)
            refused.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "block")
            nursery.start_soon(ask, "hang_up")
        assert len(refused) == 2
        await channel.closed.wait()
        with pytest.raises(ChannelClosed):
            await channel.call("block", 5)
        with pytest.raises(ChannelClosed):
            await channel.notify("block")


async def test_a_process_that_stops_reading_holds_nobody_up(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """As after SIGSTOP: its socket takes some, then no more; cancelling alone would not end the send."""

    async def never_read(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve, str(path), never_read)
        async with connected(str(path), {}) as channel:
            with pytest.raises((DeadlineExceeded, ChannelClosed)):
                await channel.call("echo", 2, padding="x" * (MAX_FRAME_BYTES // 2))
            with pytest.raises(ChannelClosed):
                await channel.notify("echo")
        nursery.cancel_scope.cancel()


async def test_a_caller_sees_its_own_error_and_no_group_around_it(path: Path) -> None:
    async with served(path) as server:
        with pytest.raises(NotFound, match="mine"):
            async with connected(server.path, {}):
                raise NotFound("mine")


async def test_nobody_listening_is_said_with_the_socket(path: Path) -> None:
    with pytest.raises(ChannelClosed, match=str(path)):
        async with connected(str(path), {}):
            pytest.fail("there is nobody")


@pytest.mark.parametrize(
    ("sent", "event"),
    [
        (struct.pack(">I", 3) + b"{}}", "channel.frame_malformed"),
        (struct.pack(">I", 2) + b"[]", "channel.frame_malformed"),
        (struct.pack(">I", 1) + b"\xff", "channel.frame_malformed"),
        (struct.pack(">I", 200_000) + b"[" * 200_000, "channel.frame_malformed"),
        (struct.pack(">I", MAX_FRAME_BYTES + 1), "channel.frame_too_long"),
        (struct.pack(">I", 10) + b"{", None),
        (b"\0", None),
    ],
)
async def test_a_client_that_talks_nonsense_is_hung_up_on_and_harms_nobody(
    path: Path, sent: bytes, event: str | None, expected_logs: ExpectedLogs
) -> None:
    if event is not None:
        expected_logs.allow(event)
    async with served(path, echo=echo) as server, connected(server.path, {}) as channel:
        stream = await trio.open_unix_socket(server.path)
        await stream.send_all(sent)
        await stream.send_eof()
        with trio.fail_after(10):
            assert await stream.receive_some() == b""
        await stream.aclose()
        assert await channel.call("echo", 5, still="there") == {"still": "there"}


async def test_frames_may_arrive_in_any_pieces(path: Path) -> None:
    async with served(path, echo=echo) as server:
        stream = await trio.open_unix_socket(server.path)
        frames = b""
        for number in (1, 2):
            body = json.dumps({"id": number, "call": "echo", "args": {"number": number}}).encode()
            frames += struct.pack(">I", len(body)) + body
        for place in range(len(frames)):
            await stream.send_all(frames[place : place + 1])
        answers = b""
        with trio.fail_after(10):
            while answers.count(b'"ok"') < 2:
                answers += await stream.receive_some()
        await stream.aclose()


async def test_an_answer_that_nobody_waits_for_any_more_is_dropped(path: Path) -> None:
    async with served(path, echo=echo) as server, connected(server.path, {}) as channel:
        with trio.move_on_after(0):
            await channel.call("echo", 5)
        assert await channel.call("echo", 5, number=2) == {"number": 2}


async def test_the_socket_is_its_owners_alone_and_replaces_what_was_left(path: Path) -> None:
    path.write_text("left over")
    Path(f"{path}.{os.getpid()}").write_text("left over, too")
    async with served(path, echo=echo) as server, connected(server.path, {}) as channel:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await channel.call("echo", 5) == {}
    assert os.listdir(path.parent) == [path.name]


async def test_what_runs_for_a_client_ends_with_it(path: Path) -> None:
    cancelled = trio.Event()

    async def block(_: Arguments) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with served(path, block=block) as server:
        async with connected(server.path, {}) as channel:
            with trio.move_on_after(0.05):
                await channel.call("block", 60)
        with trio.fail_after(10):
            await cancelled.wait()
