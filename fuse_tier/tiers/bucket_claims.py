"""Who uploads what several nodes have: a node says in the bucket what it uploads, and the others wait for it.

Owns the claims, small objects beside the content, and nothing that correctness depends on: two that upload the same
harm nothing but time. A claim is renewed while its holder works, and counts no longer when that has ceased for
STALE_SECONDS, by the service's clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.errors import TierError
from fuse_tier.tiers.bucket_batch import AT_MOST, portions
from fuse_tier.tiers.bucket_content import MemoryContent
from fuse_tier.tiers.bucket_errors import Busy
from fuse_tier.tiers.bucket_layout import claim_object
from fuse_tier.tiers.bucket_many import Removable, heads, mark_used, remove
from fuse_tier.tiers.bucket_objects import Objects, Stored, is_copy
from fuse_tier.tiers.bucket_task import Task
from fuse_tier.tiers.bucket_work import Work

log = structlog.get_logger(__name__)

CLAIM_FROM: Final = 1 << 20  # bytes: smaller content is sent twice sooner than it is claimed
STALE_SECONDS: Final = 30.0
_RENEW_SECONDS: Final = 8.0
_RELEASE_SECONDS: Final = 2.0


class Claims:
    """The claims of one process."""

    def __init__(self, objects: Objects, work: Work) -> None:
        self._objects = objects
        self._work = work
        self._ours = MemoryContent(secrets.token_hex(16).encode())
        self._held: set[str] = set()
        self._stuck: set[str] = set()

    def is_claimable(self, content: Blob) -> bool:
        """False where claiming is no use: too many try to, or a claim was left behind and the bucket keeps it."""
        return claim_object(content) not in self._stuck

    async def take(self, content: Blob) -> Stored | None:
        """Claims content; None if it is claimed, or many try to."""
        name = claim_object(content)
        if name in self._held:
            return None
        self._held.add(name)
        claim: Stored | None = None

        def attempt(task: Task) -> Stored | None:
            try:
                return self._objects.put(name, self._ours, 0, lambda _: None, task.stop)
            except Busy:  # with others who want the same; if none of them has it afterwards, it goes unclaimed
                self._stuck.add(name)
                return None

        try:
            claim = await self._work.run(lambda task: task.retry(lambda: attempt(task)))
        finally:
            if claim is None:
                self._held.discard(name)
        return claim

    async def renew(self, claims: Sequence[Stored]) -> None:
        """Keeps claims from growing stale, those too that are added while it runs, until cancelled."""
        while True:
            await trio.sleep(_RENEW_SECONDS)
            try:
                if claims:
                    await self._work.run(partial(mark_used, self._objects, list(claims)), spare=True)
            except TierError as error:  # others may then upload the same: that costs time only
                log.info("bucket.claims_not_renewed", reason=str(error))

    async def open_to_us(self, contents: Sequence[Blob]) -> list[Blob]:
        """Which of these nobody else is uploading any more; what was claimed by somebody who has gone is set free."""
        free: list[Blob] = []
        for portion in portions(contents, AT_MOST):
            names = {claim_object(content): content for content in portion}
            free += await self._work.run(partial(self._free, names))
        return free

    def _free(self, names: dict[str, Blob], task: Task) -> list[Blob]:
        found = heads(self._objects, names, task)
        oldest = self._objects.now() - STALE_SECONDS
        ended = [claim for claim in found.values() if claim.used < oldest or self._was_ours(claim)]
        removal = remove(self._objects, [Removable(one.name, one.size, one.generation) for one in ended], task)
        self._stuck |= {kept.name for kept in removal.kept}
        gone = {one.name for one in ended}
        return [content for name, content in names.items() if name not in found or name in gone]

    def _was_ours(self, claim: Stored) -> bool:
        """Of work that was cut, or a claim whose answer was lost."""
        return claim.name not in self._held and is_copy(claim, self._ours)

    async def release(self, claims: Sequence[Stored]) -> None:
        """Gives up claims, whatever became of what they were taken for."""
        self._held.difference_update(claim.name for claim in claims)
        wanted = [Removable(claim.name, claim.size, claim.generation) for claim in claims]
        with trio.move_on_after(_RELEASE_SECONDS, shield=True):
            try:
                await self._work.run(lambda task: remove(self._objects, wanted, task))
            except TierError as error:  # they grow stale
                log.info("bucket.claims_left", claims=len(claims), reason=str(error))
