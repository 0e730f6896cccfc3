"""Which snapshots and checkpoints a tier gives up.

Pure decisions; who carries them out drops records and manifests and later collects the blobs. The invariant:
nothing older is given up before something newer is verified where it counts. What is counted are checkpoints: a save
leaves two or three snapshots of one step, of which the last stands for all.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from fuse_tier.checkpoints import Checkpoint, Saved
from fuse_tier.identity import Identity, SnapshotId

T = TypeVar("T", bound=Hashable)

_ONE_SAVE_NS: Final = 600 * 10**9  # snapshots of one step that lie within this time are one save
_PERIODS: Final = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m"}


@dataclass(frozen=True, slots=True)
class Keep:
    """How many checkpoints stay: so many of the newest, and the last one of each of so many hours, days, …

    Hours and days without one don't count, so nothing is given up only because time passes. In UTC.
    """

    last: int
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What of a job is given up, oldest first. Records go first, then snapshots."""

    records: tuple[str, ...] = ()
    snapshots: tuple[SnapshotId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.records or self.snapshots)


def choose_kept(moments: Mapping[T, int], keep: Keep) -> set[T]:
    """Which of several moments stay; they are nanoseconds since 1970. The newest always does."""
    newest_first = sorted(moments, key=lambda one: -moments[one])
    stay = set(newest_first[: max(1, keep.last)])
    for period, pattern in _PERIODS.items():
        seen: set[str] = set()
        for one in newest_first:
            name = datetime.fromtimestamp(moments[one] // 10**9, UTC).strftime(pattern)
            if name not in seen and len(seen) < getattr(keep, period):
                seen.add(name)
                stay.add(one)
    return stay


def last_of_saves(listed: Iterable[Saved]) -> list[Saved]:
    """The snapshots of one run of a volume that stand for a save each, newest first.

    Where the names in the trees tell steps, a snapshot without one (of the moment between two, say) stands for
    nothing. Where they don't, each snapshot counts.
    """
    newest_first = sorted(listed, key=lambda saved: -saved.id.number)
    if all(saved.step is None for saved in newest_first):
        return newest_first
    chosen: dict[int, list[Saved]] = {}
    for saved in newest_first:
        if saved.step is not None:
            of_step = chosen.setdefault(saved.step, [])
            if not of_step or abs(of_step[-1].created_ns - saved.created_ns) > _ONE_SAVE_NS:
                of_step.append(saved)
    return sorted((saved for several in chosen.values() for saved in several), key=lambda saved: -saved.id.number)


def plan_retention(
    listed: Mapping[int, Saved | None],
    keep: Keep,
    *,
    durable_elsewhere: Collection[int] = (),
    in_use: Collection[int] = (),
    needed: Collection[int] = (),
    aside: Collection[int] = (),
) -> tuple[int, ...]:
    """The numbers of one volume's snapshots that a tier gives up, oldest first.

    ``listed`` are the snapshots that this tier lists, None for one whose manifest cannot be read: such a one
    counts as a run of its own. Of a run before the newest snapshot's its last state stays: a workload that is made
    anew under an old name must not push out what the old one left. The rest is about the newest one's run.
    ``durable_elsewhere`` are those verified on a tier farther away, wherever it lists them now; empty when none is
    configured. ``in_use`` are being copied or restored; ``needed`` stays for other volumes' sake: parts of a complete
    checkpoint of the job, and what was set aside not long ago. What is set ``aside`` is no save that ``keep`` counts.

    What ``keep`` counts stays (the newest snapshot always), and what is in use. So does the newest one that is
    durable elsewhere: until a newer one is there too, it is what would be left if this tier were lost, and a second
    source for it is worth its room. Those between it and the newest are superseded here and were never there: they
    go, because a tier that kept them would fill up while a bucket is down for an hour.
    """
    stay = {*in_use, *needed}
    for index, (_, numbers) in enumerate(_by_run(listed)):
        stay.add(numbers[0])
        if index == 0:
            of_run = [saved for number in numbers if (saved := listed[number]) is not None and number not in aside]
            kept = choose_kept(_moments(last_of_saves(of_run)), keep)
            stay |= kept
    if durable_elsewhere:
        stay.add(max(durable_elsewhere))
    return tuple(number for number in sorted(listed) if number not in stay)


def _moments(newest_first: Iterable[Saved]) -> dict[int, int]:
    """When snapshots were taken, in the order of their numbers, whatever the clocks of their nodes say."""
    moments: dict[int, int] = {}
    latest = 0
    for saved in reversed(list(newest_first)):
        latest = max(latest, saved.created_ns)
        moments[saved.id.number] = latest
    return dict(reversed(moments.items()))


def _by_run(listed: Mapping[int, Saved | None]) -> list[tuple[str, list[int]]]:
    """Each run with its numbers, newest first."""
    runs: dict[str, list[int]] = {}
    for number in sorted(listed, reverse=True):
        saved = listed[number]
        runs.setdefault(saved.lineage.run if saved else "", []).append(number)
    return list(runs.items())


def plan_job_retention(
    listed: Mapping[SnapshotId, Saved | None],
    records: Mapping[str, Checkpoint],
    keep: Keep,
    *,
    in_use: Collection[SnapshotId] = (),
) -> JobPlan:
    """What a bucket gives up of a job: ``listed`` and ``records`` are all that it has of it.

    Of the complete checkpoints of the newest run those that ``keep`` counts stay, of an earlier run the last; one
    that was recorded twice (a rank had more to say) counts as its later record. With a checkpoint its snapshots
    stay. Of each volume besides: the newest snapshot, the last of an earlier run, what is in use, and, of those
    newer than its newest complete checkpoint, what may become part of one, as many as ``keep`` counts. A record
    whose snapshots are not all listed is no checkpoint any more, and goes. A snapshot that cannot be read, by this
    version at least, stays: somebody has to look at it.
    """
    whole = {name: record for name, record in records.items() if record.ids <= listed.keys()}
    kept_records = _kept_records(whole, keep)
    stay = set(in_use) | {snapshot for snapshot, saved in listed.items() if saved is None}
    for name in kept_records:
        stay |= whole[name].ids
    newest_record = max(whole.values(), key=lambda record: record.created_ns, default=None)
    for identity, of_volume in _by_volume(listed).items():
        complete = newest_record.number_of(identity) if newest_record is not None else None
        later = {number: saved for number, saved in of_volume.items() if complete is None or number > complete}
        kept = set(of_volume) - set(plan_retention(of_volume, Keep(1)))
        kept |= set(later) - set(plan_retention(later, keep))
        stay |= {SnapshotId(identity, number) for number in kept}
    snapshots = tuple(sorted((one for one in listed if one not in stay), key=lambda one: (one.number, one)))
    return JobPlan(tuple(sorted(records.keys() - kept_records)), snapshots)


def _kept_records(whole: Mapping[str, Checkpoint], keep: Keep) -> set[str]:
    newest_first = sorted(whole, key=lambda name: (-whole[name].created_ns, name))
    runs: dict[str, dict[int | str | None, str]] = {}
    for name in newest_first:
        record = whole[name]
        # Of a job whose trees name no steps each record is a checkpoint of its own.
        runs.setdefault(record.lineage.run, {}).setdefault(name if record.step is None else record.step, name)
    kept: set[str] = set()
    for index, by_step in enumerate(runs.values()):
        names = list(by_step.values())
        moments = {name: whole[name].created_ns for name in names}
        kept |= choose_kept(moments, keep) if index == 0 else {names[0]}
    return kept


def _by_volume(listed: Mapping[SnapshotId, Saved | None]) -> dict[Identity, dict[int, Saved | None]]:
    volumes: dict[Identity, dict[int, Saved | None]] = {}
    for snapshot, saved in listed.items():
        volumes.setdefault(snapshot.identity, {})[snapshot.number] = saved
    return volumes
