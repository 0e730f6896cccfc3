"""What is asked of many objects: a hundred calls to a request, each repeated until it has an answer that counts.

Owns the report of a removal. An object that may not be removed is no failure of the others: holds, retention
policies and soft delete are the bucket owner's word, which is respected and told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from fuse_tier.errors import NotFound, TierError, TierUnavailable
from fuse_tier.tiers.bucket_batch import AT_MOST, Answer, Call
from fuse_tier.tiers.bucket_errors import Protected
from fuse_tier.tiers.bucket_objects import Objects, Stored
from fuse_tier.tiers.bucket_task import Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Removable:
    """An object to remove, and of what size it is said to be; only that generation, if one is named."""

    name: str
    size: int = 0
    generation: int | None = None
    metageneration: int | None = None  # unless it was relied upon since


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that the bucket would not remove, and what it said."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Removal:
    """What came of removing objects. What is in none of these was not there any more, or was relied upon since."""

    removed: tuple[str, ...] = ()
    freed: int = 0  # bytes
    kept: tuple[Kept, ...] = ()  # by holds and retention policies; a later removal will do

    def __add__(self, other: Removal) -> Removal:
        return Removal(self.removed + other.removed, self.freed + other.freed, self.kept + other.kept)


def heads(objects: Objects, names: Iterable[str], task: Task) -> dict[str, Stored]:
    """What is known of those of these objects that are there."""
    wanted = list(names)

    def read(at: int, answer: Answer) -> Stored | None:
        if answer.status == HTTPStatus.OK:
            return objects.stored_in(answer)
        error = objects.errors.of(answer, "get", wanted[at])
        if isinstance(error, NotFound):
            return None
        raise error

    answers = _ask(objects, [objects.head_call(name) for name in wanted], read, task)
    return {name: stored for name, stored in zip(wanted, answers, strict=True) if stored is not None}


def mark_used(objects: Objects, wanted: Sequence[Stored], task: Task) -> list[bool]:
    """Makes objects young, so that nobody collects them; False for what is not there any more.

    The service lets nobody change an object more than about once a second, and many nodes may want to mark the same
    one: who was refused looks whether another's mark is there by now, which serves as well.
    """
    calls = [objects.use_call(stored) for stored in wanted]
    looking: set[int] = set()

    def read(at: int, answer: Answer) -> bool:
        one = wanted[at]
        if at in looking and answer.status == HTTPStatus.OK:
            found = objects.stored_in(answer)
            if found.generation != one.generation or found.used > one.used:
                return found.generation == one.generation
            looking.discard(at)
            calls[at] = objects.use_call(one)
            raise TierUnavailable(f"{one.name} was marked by nobody yet: that is tried again")
        try:
            return _is_marked(objects, one, answer)
        except TierUnavailable:
            looking.add(at)
            calls[at] = objects.head_call(one.name)
            raise

    return _ask(objects, calls, read, task)


def mark_checked(objects: Objects, wanted: Sequence[Stored], task: Task) -> list[bool]:
    """Says of objects that what arrived was compared; False for what is not there any more."""
    calls = [objects.checked_call(stored) for stored in wanted]
    return _ask(objects, calls, lambda at, answer: _is_marked(objects, wanted[at], answer), task)


def _is_marked(objects: Objects, one: Stored, answer: Answer) -> bool:
    if answer.status == HTTPStatus.OK:
        return True
    if answer.status == HTTPStatus.PRECONDITION_FAILED:
        return False
    error = objects.errors.of(answer, "update", one.name)
    if isinstance(error, NotFound):
        return False
    if isinstance(error, Protected):  # its metadata may not change, and neither may it go
        return True
    raise error


def remove(objects: Objects, wanted: Sequence[Removable], task: Task) -> Removal:
    """Removes objects, as far as the bucket lets us. Raises TierRefused, with the first of its kind, for want of
    the permission.
    """

    def read(at: int, answer: Answer) -> Removal:
        one = wanted[at]
        if answer.status in (HTTPStatus.OK, HTTPStatus.NO_CONTENT):
            return Removal((one.name,), one.size)
        if answer.status == HTTPStatus.PRECONDITION_FAILED:
            return Removal()
        error = objects.errors.of(answer, "delete", one.name)
        if isinstance(error, NotFound):
            return Removal()
        if isinstance(error, Protected):
            return Removal(kept=(Kept(one.name, str(error)),))
        raise error

    calls = [objects.delete_call(one.name, one.generation, one.metageneration) for one in wanted]
    outcomes = _ask(objects, calls, read, task)
    return Removal(
        tuple(name for outcome in outcomes for name in outcome.removed),
        sum(outcome.freed for outcome in outcomes),
        tuple(kept for outcome in outcomes for kept in outcome.kept),
    )


def _ask(objects: Objects, calls: Sequence[Call], read: Callable[[int, Answer], T], task: Task) -> list[T]:
    """Makes calls; ``read`` gets each one's number and answer, and its TierUnavailable has that call repeated."""
    found: dict[int, T] = {}
    for start in range(0, len(calls), AT_MOST):
        numbers = range(start, min(start + AT_MOST, len(calls)))

        def attempt(numbers: range = numbers) -> None:
            open_ones = [number for number in numbers if number not in found]
            passing: TierError | None = None
            answers = objects.call([calls[number] for number in open_ones])
            for number, answer in zip(open_ones, answers, strict=True):
                try:
                    found[number] = read(number, answer)
                except TierUnavailable as error:
                    passing = error
            if passing is not None:
                raise passing

        task.retry(attempt)
    return [found[number] for number in range(len(calls))]
