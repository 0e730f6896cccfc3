"""The ranks service's answers, which are held while a rank is waited for."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from controller.ranks.book import RankBook
from controller.ranks.objects import Name, Owner, read_pod
from controller.ranks.service import RanksService
from csi import ranks_pb2 as pb
from csi.services import DRIVER_NAME
from fuse_tier.coordinate.fencing import Fence, Superseded
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import NotAuthorized
from fuse_tier.wire.grpc import Caller
from tests.controller.ranks.objects import jobset_pod
from tests.harness.logs import ExpectedLogs

ANYBODY = Caller(None, "127.0.0.1:1")
WORKERS = 3


def book_of_a_job() -> RankBook:
    book = RankBook()
    book.see_workers(Owner("Job", Name("ml", "llama-workers-0")), WORKERS)
    for worker in range(WORKERS):
        pod = read_pod(jobset_pod("llama", 1, 0, worker, uid=str(worker), node=f"node-{worker}"), DRIVER_NAME)
        assert pod is not None
        book.see_pod(pod)
    return book


async def ask(service: RanksService, worker: int, hold_seconds: float) -> pb.UpdateResponse:
    request = pb.UpdateRequest(node=f"node-{worker}", pod_uid=str(worker), rank=-1, hold_seconds=hold_seconds)
    return await service.Update(request, ANYBODY)


async def test_answers_are_held_until_the_last_node_of_a_job_has_asked(autojump_clock: MockClock) -> None:
    service = RanksService(book_of_a_job(), Fence(1), authenticated=False)
    answers: dict[int, tuple[float, pb.UpdateResponse]] = {}
    begun = trio.current_time()

    async def keep(worker: int) -> None:
        answer = await ask(service, worker, 10)
        answers[worker] = (trio.current_time() - begun, answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, 0)
        nursery.start_soon(keep, 1)
        await trio.sleep(1)
        assert not answers
        nursery.start_soon(keep, 2)
    assert {worker: (after, said.new_state, said.rank) for worker, (after, said) in answers.items()} == {
        worker: (1, pb.ASSIGNED, worker) for worker in range(WORKERS)
    }


async def test_an_answer_is_held_no_longer_than_the_caller_says_and_then_tells_who_is_missing(
    autojump_clock: MockClock,
) -> None:
    service = RanksService(book_of_a_job(), Fence(1), authenticated=False)
    for hold, held in ((0.0, 0.0), (7.0, 7.0), (1000.0, Deadline.RANKS)):
        begun = trio.current_time()
        answer = await ask(service, 0, hold)
        assert trio.current_time() - begun == held
        assert answer.new_state == pb.PENDING
        assert "ml/llama-workers-0-1-0 (no word from node node-1)" in answer.waits_for


async def test_who_is_held_learns_that_its_job_has_begun_anew(
    autojump_clock: MockClock, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("ranks.refused")
    book = book_of_a_job()
    service = RanksService(book, Fence(1), authenticated=False)
    refused: list[str] = []

    async def be_refused() -> None:
        try:
            await ask(service, 0, Deadline.RANKS)
        except Exception as error:  # noqa: BLE001 - which one, the assertion says
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_refused)
        await trio.sleep(1)
        later = jobset_pod("llama", 1, 0, 0, attempt=1, uid="later", node="node-0", created="2026-01-02T00:00:00Z")
        pod = read_pod(later, DRIVER_NAME)
        assert pod is not None
        book.see_pod(pod)
    assert "is of an earlier life of ml/llama" in refused[0]


async def test_a_node_speaks_only_for_its_certificate_and_a_server_that_was_replaced_for_nobody(
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs.allow("peer.refused")
    fence = Fence(1)
    service = RanksService(book_of_a_job(), fence, authenticated=True)
    request = pb.UpdateRequest(node="node-0", pod_uid="0", rank=-1)
    for stranger in (Caller("node-1", "127.0.0.1:1"), ANYBODY):
        with pytest.raises(NotAuthorized, match="speaks for 'node-0'"):
            await service.Update(request, stranger)
    own = Caller("node-0", "127.0.0.1:1")
    assert (await service.Update(request, own)).new_state == pb.PENDING
    fence.hear(2, is_settled=True)
    with pytest.raises(Superseded):
        await service.Update(request, own)
