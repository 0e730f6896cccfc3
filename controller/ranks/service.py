"""The ranks service's calls: who may make them, and what is logged of them. What is concluded is the book's."""

from __future__ import annotations

import structlog
import trio

from controller.ranks.book import Answer, RankBook, Report
from controller.ranks.objects import Name
from csi import ranks_pb2 as pb
from fuse_tier.coordinate.fencing import Fence
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import NotAuthorized, TierRefused
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.rejections import Rejections

log = structlog.get_logger(__name__)

_ENDED = (pb.COMPLETED, pb.SHUTDOWN)
_LOOK_SECONDS = 5.0  # whether a held call still has something to wait for: pods come, go and begin anew


class RanksService:
    """The servicer of ``RanksService`` in ranks.proto. ``authenticated`` says that callers have certificates."""

    def __init__(self, book: RankBook, fence: Fence, *, authenticated: bool) -> None:
        self._book = book
        self._fence = fence
        self._authenticated = authenticated
        self._rejections = Rejections("peer.refused")
        self._assigned: dict[Name, trio.Event] = {}  # of jobs of which calls are held

    async def Update(self, request: pb.UpdateRequest, caller: Caller) -> pb.UpdateResponse:  # noqa: N802 - its wire name
        """Takes a node's word on a pod, and answers with the pod's rank, or PENDING.

        The answer is held while the rank is waited for, for as long as the caller says.
        """
        if self._authenticated and caller.node != request.node:
            error = NotAuthorized(
                f"{caller.address} has the certificate of node {caller.node!r} and speaks for {request.node!r}"
            )
            self._rejections.note("certificate", caller.address, str(error))
            raise error
        report = Report(
            request.node,
            request.pod_uid,
            request.state == pb.ASSIGNED,
            request.jobset,
            request.jobset_shape,
            request.rank,
        )
        if request.state in _ENDED:
            self._book.forget(report)
            return pb.UpdateResponse(new_state=request.state)
        answer = self._update(report)
        with trio.move_on_after(min(request.hold_seconds, Deadline.RANKS)):
            while answer.rank is None:
                assigned = self._assigned.setdefault(answer.job, trio.Event())
                with trio.move_on_after(_LOOK_SECONDS):
                    await assigned.wait()
                answer = self._update(report)
        if answer.rank is not None and request.state == pb.PENDING:
            log.info("ranks.assigned", job=str(answer.job), pod=request.pod_uid, node=request.node, rank=answer.rank)
        return _to_wire(answer)

    def _update(self, report: Report) -> Answer:
        self._fence.check()
        try:
            answer = self._book.update(report)
        except TierRefused as error:
            log.warning("ranks.refused", node=report.node, pod=report.pod, reason=str(error))
            raise
        if answer.rank is not None and (assigned := self._assigned.pop(answer.job, None)) is not None:
            assigned.set()
        return answer


def _to_wire(answer: Answer) -> pb.UpdateResponse:
    return pb.UpdateResponse(
        new_state=pb.PENDING if answer.rank is None else pb.ASSIGNED,
        rank=-1 if answer.rank is None else answer.rank,
        controller_ip=answer.first_address,
        jobset=str(answer.job),
        jobset_shape=str(answer.shape),
        waits_for=answer.waits_for,
    )
