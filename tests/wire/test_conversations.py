"""Calls of which each message is answered, over real gRPC on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, TierRefused, TierUnavailable, UnknownCall
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire import handlers
from fuse_tier.wire.calls import Conversation
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub, add_CoordinatorServicer_to_server
from fuse_tier.wire.grpc import Caller, Client, serve
from fuse_tier.wire.intake import MOST_BYTES
from fuse_tier.wire.tls import TlsFiles
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.wire.certificates import make_certificates


class Counting:
    """Answers with the number of the message, and refuses those of a node that it does not like."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.of: list[Caller] = []

    def Reports(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:  # noqa: N802 - its wire name
        if request.node == "unloved":
            raise TierRefused("not you")
        if request.node == "broken":
            raise RuntimeError("a defect")
        self.heard.append(request.sequence)
        self.of.append(caller)
        return pb.ReportReply(clock=request.sequence)


@asynccontextmanager
async def serving(
    servicer: object, tls: TlsFiles | None = None, own: TlsFiles | None = None
) -> AsyncIterator[Client]:
    async with trio.open_nursery() as nursery:
        registered = [(add_CoordinatorServicer_to_server, servicer)]
        port = await nursery.start(partial(serve, registered, "127.0.0.1:0", tls))
        async with Client(f"127.0.0.1:{port}", CoordinatorStub, own) as client:
            yield client
        nursery.cancel_scope.cancel()


async def say(conversation: Conversation, sequence: int, node: str = "a", seconds: float = 5) -> int:
    reply: pb.ReportReply = await conversation.ask(pb.ReportRequest(node=node, sequence=sequence), seconds)
    return reply.clock


async def test_each_message_is_answered_over_one_call() -> None:
    counting = Counting()
    async with serving(counting) as client:
        conversation = client.converse("Reports")
        assert [await say(conversation, number) for number in range(1, 50)] == list(range(1, 50))
        assert conversation.is_usable
        conversation.close()
    assert counting.heard == list(range(1, 50))
    assert len({caller.address for caller in counting.of}) == 1


async def test_a_node_has_so_many_at_once_and_more_are_refused_and_told(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """Each may bring something long, and all at once."""
    expected_logs.allow("control.request_refused")
    certificates = make_certificates(tmp_path)
    async with serving(Counting(), certificates.b, certificates.a) as client:
        conversations = [client.converse("Reports") for _ in range(32)]
        assert [await say(one, 1) for one in conversations] == [1] * 32
        with pytest.raises(TierUnavailable, match="node a has 32 streams open already"):
            await say(client.converse("Reports"), 1)
        conversations[0].close()

        async def is_let_in() -> bool:
            try:
                return await say(client.converse("Reports"), 2) == 2
            except TierUnavailable:
                return False

        await until(is_let_in)
        assert [await say(one, 3) for one in conversations[1:]] == [3] * 31
    (line,) = expected_logs.heard
    assert "kind='too_many'" in line.text


async def test_a_message_as_long_as_manifests_may_be_is_not_taken_where_none_are_brought() -> None:
    async with serving(Counting()) as client:
        conversation = client.converse("Reports")
        with pytest.raises(TierUnavailable, match="larger than max"):
            await say(conversation, 1, node="x" * MOST_BYTES)
        assert await say(client.converse("Reports"), 2) == 2


async def test_of_many_each_is_given_its_own_answer_and_a_refusal_concerns_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handlers, "_FEW", 5)
    answered: dict[int, list[int]] = {}
    async with serving(Counting()) as client:

        async def talk(who: int) -> None:
            conversation = client.converse("Reports")
            answered[who] = [await say(conversation, 100 * who + number) for number in range(5)]
            with pytest.raises(TierRefused, match="not you"):
                await say(conversation, 1, node="unloved")
            conversation.close()

        async with trio.open_nursery() as nursery:
            for who in range(10):
                nursery.start_soon(talk, who)
    assert answered == {who: [100 * who + number for number in range(5)] for who in range(10)}


async def test_what_the_handler_raises_ends_it_and_another_can_be_begun() -> None:
    async with serving(Counting()) as client:
        refused = client.converse("Reports")
        assert await say(refused, 1) == 1
        with pytest.raises(TierRefused, match="not you"):
            await say(refused, 2, node="unloved")
        with pytest.raises(TierRefused, match="not you"):
            await say(refused, 3)
        refused.close()
        again = client.converse("Reports")
        assert await say(again, 4) == 4
        again.close()


async def test_a_defect_of_the_handler_is_logged_there_and_not_told(expected_logs: ExpectedLogs) -> None:
    expected_logs.allow("grpc.handler_failed")
    async with serving(Counting()) as client:
        conversation = client.converse("Reports")
        with pytest.raises(TierUnavailable, match="its log says why"):
            await say(conversation, 1, node="broken")
        conversation.close()


async def test_who_has_no_such_call_says_that_versions_differ() -> None:
    async with serving(object()) as client:
        conversation = client.converse("Reports")
        with pytest.raises(UnknownCall, match="does not know the call Reports"):
            await say(conversation, 1)
        conversation.close()


async def test_an_answer_that_does_not_come_in_time_ends_it() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")  # takes connections, and says nothing
    async with listener, Client(f"127.0.0.1:{listener.socket.getsockname()[1]}", CoordinatorStub, None) as client:
        conversation = client.converse("Reports")
        with pytest.raises(DeadlineExceeded, match=r"not answered within 0\.2 s"):
            await say(conversation, 1, seconds=0.2)
        assert not conversation.is_usable
        conversation.close()


async def test_who_says_nothing_for_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "SILENCE", 0.1)
    async with serving(Counting()) as client:
        conversation = client.converse("Reports")

        async def is_over() -> bool:
            return not conversation.is_usable

        await until(is_over)
        with pytest.raises(TierUnavailable, match=r"nothing was said for 0\.1 s"):
            await say(conversation, 1)
        conversation.close()


async def test_ending_the_server_ends_it() -> None:
    async with trio.open_nursery() as nursery:
        registered = [(add_CoordinatorServicer_to_server, Counting())]
        port = await nursery.start(partial(serve, registered, "127.0.0.1:0", None))
        client = Client(f"127.0.0.1:{port}", CoordinatorStub, None)
        conversation = client.converse("Reports")
        assert await say(conversation, 1) == 1
        nursery.cancel_scope.cancel()
    async with client:
        with pytest.raises(TierUnavailable):
            await say(conversation, 2)
        conversation.close()
