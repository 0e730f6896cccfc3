"""What a bucket's owner has set, as far as it matters to what we keep there. It is told, and never changed.

Soft delete: for how long what was deleted is kept, unseen and paid for; Cloud Storage gives new buckets a week of it,
which many owners of checkpoints do not know. Lifecycle rules that delete by age: content of an old object may be what
the newest snapshot names. The storage class: some charge for a month or more of what lives for seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierRefused
from fuse_tier.tiers.bucket_session import Session
from fuse_tier.tiers.bucket_task import Task

_CALL: Final = (5.0, Deadline.BUCKET_STALL)
# cloud.google.com/storage/docs/lifecycle#conditions: those that only versions meet which are not the live one
_NOT_LIVE: Final = ("daysSinceNoncurrentTime", "noncurrentTimeBefore", "numNewerVersions")


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a bucket."""

    soft_delete_seconds: float  # 0 for none
    deleting: tuple[str, ...]  # lifecycle rules that delete what is ours: their conditions
    storage_class: str  # the default one, such as STANDARD


def settings_of(session: Session, prefix: str, task: Task) -> Settings | None:
    """Those of the bucket; None where we may not know them (``storage.buckets.get``)."""

    def ask() -> Settings:
        with session.errors.told("get", ""):
            bucket = session.bucket()
            bucket.reload(timeout=_CALL, retry=None)
            rules = [dict(rule) for rule in bucket.lifecycle_rules]
            return Settings(
                float(bucket.soft_delete_policy.retention_duration_seconds or 0),
                tuple(json.dumps(rule["condition"]) for rule in rules if deletes(rule, prefix)),
                str(bucket.storage_class or "STANDARD"),
            )

    try:
        return task.retry(ask)
    except TierRefused:
        return None


def deletes(rule: Mapping[str, Any], prefix: str) -> bool:
    """Whether a lifecycle rule may delete live objects below a prefix."""
    condition = rule.get("condition", {})
    if rule.get("action", {}).get("type") != "Delete" or condition.get("isLive") is False:
        return False
    if any(key in condition for key in _NOT_LIVE):
        return False
    matching = condition.get("matchesPrefix") or [""]
    return any(one.startswith(prefix) or prefix.startswith(one) for one in matching)
