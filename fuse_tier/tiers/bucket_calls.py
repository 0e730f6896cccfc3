"""Calls that travel together: a batch to the service, and an answer for each call of it.

Owns what becomes of a batch that the endpoint does not know, and of calls in it whose credentials were out of date:
of other requests the session sees that itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from fuse_tier.deadlines import Deadline
from fuse_tier.tiers import bucket_batch as batch
from fuse_tier.tiers.bucket_batch import Answer, Call
from fuse_tier.tiers.bucket_session import Session

CONNECT_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 0.2  # the service answers a batch when the last of its calls is done
_NO_BATCHES: Final = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)


def make_calls(session: Session, calls: Sequence[Call]) -> list[Answer]:
    """Makes up to ``bucket_batch.AT_MOST`` calls in one request; an answer for each, in their order.

    One by one where the endpoint knows no batches, as some emulators do not. Calls that were refused for want of
    valid credentials are made once more with renewed ones.
    """
    with session.errors.told("get", ""):
        answers = _in_one(session, calls)
        lapsed = [at for at, answer in enumerate(answers) if answer.status == HTTPStatus.UNAUTHORIZED]
        if lapsed:
            session.renew_credentials()
            for at, answer in zip(lapsed, _in_one(session, [calls[at] for at in lapsed]), strict=True):
                answers[at] = answer
        return answers


def _in_one(session: Session, calls: Sequence[Call]) -> list[Answer]:
    timeout = (CONNECT_SECONDS, Deadline.BUCKET_STALL + _CALL_SECONDS * len(calls))
    response = session.http().post(
        f"{session.base}{batch.PATH}",
        data=batch.encode(calls),
        headers={"Content-Type": batch.CONTENT_TYPE},
        timeout=timeout,
    )
    if response.status_code in _NO_BATCHES:
        return [_alone(session, call) for call in calls]
    session.errors.check(response)
    return batch.decode(response.headers.get("Content-Type", ""), response.content, len(calls))


def _alone(session: Session, call: Call) -> Answer:
    timeout = (CONNECT_SECONDS, Deadline.BUCKET_STALL)
    response = session.http().request(call.method, session.base + call.target, json=call.body, timeout=timeout)
    return Answer(response.status_code, response.content)
