"""The ranks service's calls: who may make them, and what is logged of them. What is concluded is the book's."""

from __future__ import annotations

import structlog

from controller.ranks.book import Answer, RankBook, Report
from csi import ranks_pb2 as pb
from fuse_tier.errors import NotAuthorized, TierRefused
from fuse_tier.wire.grpc import Caller

log = structlog.get_logger(__name__)

_ENDED = (pb.COMPLETED, pb.SHUTDOWN)


class RanksService:
    """The servicer of ``RanksService`` in ranks.proto. ``authenticated`` says that callers have certificates."""

    def __init__(self, book: RankBook, *, authenticated: bool) -> None:
        self._book = book
        self._authenticated = authenticated

    async def Update(self, request: pb.UpdateRequest, caller: Caller) -> pb.UpdateResponse:  # noqa: N802 - its wire name
        """Takes a node's word on a pod, and answers with the pod's rank, or PENDING."""
        if self._authenticated and caller.node != request.node:
            raise NotAuthorized(
                f"{caller.address} has the certificate of node {caller.node!r} and speaks for {request.node!r}"
            )
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
        try:
            answer = self._book.update(report)
        except TierRefused as error:
            log.warning("ranks.refused", node=request.node, pod=request.pod_uid, reason=str(error))
            raise
        if answer.rank is not None and request.state == pb.PENDING:
            log.info("ranks.assigned", job=str(answer.job), pod=request.pod_uid, node=request.node, rank=answer.rank)
        return _to_wire(answer)


def _to_wire(answer: Answer) -> pb.UpdateResponse:
    return pb.UpdateResponse(
        new_state=pb.PENDING if answer.rank is None else pb.ASSIGNED,
        rank=-1 if answer.rank is None else answer.rank,
        controller_ip=answer.first_address,
        jobset=str(answer.job),
        jobset_shape=str(answer.shape),
        waits_for=answer.waits_for,
    )
