"""Soft delete: for how long a bucket keeps, unseen and paid for, what was deleted.

That is its owner's word, which is told and never changed (cloud.google.com/storage/docs/soft-delete). Cloud Storage
gives new buckets a week of it, which many owners of checkpoints do not know.
"""

from __future__ import annotations

from typing import Final

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierRefused
from fuse_tier.tiers.bucket_session import Session
from fuse_tier.tiers.bucket_task import Task

_CALL: Final = (5.0, Deadline.BUCKET_STALL)


def soft_delete_seconds(session: Session, task: Task) -> float | None:
    """How long what is deleted stays, 0 for not at all; None where we may not know (``storage.buckets.get``)."""

    def ask() -> float:
        with session.errors.told("get", ""):
            bucket = session.bucket()
            bucket.reload(timeout=_CALL, retry=None)
            return float(bucket.soft_delete_policy.retention_duration_seconds or 0)

    try:
        return task.retry(ask)
    except TierRefused:
        return None
