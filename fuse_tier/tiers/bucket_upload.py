"""One object up: what runs in a thread.

Owns what happens when something is there already, or comes and goes meanwhile. An object's content is named by the
object, so an upload may be repeated, and of two that upload the same either may win.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from fuse_tier.blobs import Blob, Progress, Source
from fuse_tier.errors import Damaged, TierUnavailable
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.bucket_content import Content, MemoryContent, content_of
from fuse_tier.tiers.bucket_layout import blob_object
from fuse_tier.tiers.bucket_objects import Objects, Stored, is_copy
from fuse_tier.tiers.bucket_task import Task

log = structlog.get_logger(__name__)
T = TypeVar("T")

_RACES: Final = 4  # rounds of "there is one already" and "there is none any more" before we call it unavailable


class Told:
    """Tells a caller of each byte once, though it may be sent several times."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._told = 0

    def __call__(self, position: int) -> None:
        """An attempt has come so far; one that is repeated moves nothing further at first."""
        if position > self._told:
            self._progress(position - self._told)
            self._told = position


def upload(
    objects: Objects,
    name: str,
    content: Content,
    told: Callable[[int], None],
    task: Task,
    *,
    found: Stored | None = None,
    replacing: int = 0,
    is_checked: bool = True,
) -> Stored:
    """Sees to it that an object has this content: what is there already and differs in anything is replaced.

    For content that its name tells: never for a manifest. ``found`` is known to be there, ``replacing`` the
    generation of one that is there and known to differ. What is not ``is_checked`` may be relied upon when it was
    marked (``bucket_checks.py``).
    """
    stored = found
    for _ in range(_RACES):
        if stored is None:
            put = functools.partial(objects.put, name, content, replacing, told, task.stop, is_checked=is_checked)
            stored = task.retry(put) or task.retry(lambda: objects.head(name))
        if stored is None:
            replacing = 0
            continue
        if content.crc32c is None:  # there before all was read: what it should be is known after that
            for _piece in content.pieces():
                pass
        if is_copy(stored, content):
            return stored
        log.warning("bucket.object.replaced", object=name, found_bytes=stored.size, bytes=content.size)
        replacing = stored.generation
        stored = None
    raise TierUnavailable(f"{name} in the bucket is being replaced and removed by others: it cannot be written now")


def upload_blob(
    objects: Objects, blob: Blob, source: Source, told: Callable[[int], None], task: Task, found: Stored | None
) -> Stored:
    """A blob as an object of its own, in a request, or in none when it was ``found`` there.

    Raises what the source raises, and Damaged.
    """

    def send(fd: int) -> Stored:
        content = content_of(fd, blob)
        is_checked = objects.are_compared and content.crc32c is not None
        return upload(objects, blob_object(blob), content, told, task, found=found, is_checked=is_checked)

    return reading(blob, source, send)


def reading(blob: Blob, source: Source, work: Callable[[int], T]) -> T:
    """Does something with a blob's descriptor; opens it a second time if what was there was not the blob.

    For a job may write to the file while it is read: its content then has a new file (``Source.open``).
    """
    for last in (False, True):
        fd = source.open(blob)
        try:
            return work(fd)
        except Damaged:
            if last:
                raise
        finally:
            os.close(fd)
    raise AssertionError(blob)


def upload_pack(objects: Objects, name: str, content: MemoryContent, task: Task) -> Stored:
    """A pack, which its members' bytes were read for."""
    return upload(objects, name, content, no_progress, task, is_checked=objects.are_compared)
