"""Listings of any length: a page that fails is asked for again, and not those before it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_task import Task

PAGE: Final = 1000  # the service's own limit


def list_all(objects: Objects, folder: str, task: Task) -> Iterator[Stored]:
    """All objects whose names begin so, in order. Raises TierUnavailable, TierRefused."""
    after = ""
    while True:
        page = task.retry(partial(_page, objects, folder, after, task))
        yield from (stored for stored in page if stored.name != after)
        if len(page) < PAGE:
            return
        after = page[-1].name


def _page(objects: Objects, folder: str, after: str, task: Task) -> list[Stored]:
    return list(objects.listed(folder, task.stop, PAGE, after))
