"""Which snapshot of a volume is restored, and who has it.

The newest of its run, of the same shape of job. An older one is never taken because a newer one cannot be had
just now, and a volume is never begun empty because somebody could not be asked; only what is damaged or gone for
good is passed over, and that is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.checkpoints import Job, Saved, step_of
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, NotFound, RunMismatch, TierError, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage, Manifest
from fuse_tier.replicate.places import Holdings, Places
from fuse_tier.restarts import Mark
from fuse_tier.several import as_of_step
from fuse_tier.tiers.base import Tier

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2  # whether somebody who is waited for has come back


@dataclass(frozen=True, slots=True)
class Chosen:
    """The snapshot to restore, and who has it, nearest first. ``highest`` is the highest number anywhere."""

    manifest: Manifest | None
    places: tuple[Tier, ...] = ()
    highest: int = 0
    passed_over: tuple[int, ...] = ()  # newer ones, damaged wherever they are, or gone with the nodes that had them
    is_forced: bool = False  # by a version: an older one than the newest on purpose
    is_part: bool = False  # of what the snapshot of this id has: newer steps are left out
    other_runs: tuple[str, ...] = ()  # that have snapshots, when there is none of the run that is asked for


class Chooser:
    """Asks everybody who may have snapshots."""

    def __init__(self, places: Places, marks: Callable[[], Collection[Mark]] = frozenset) -> None:
        self._places = places
        self._marks = marks  # steps that are not to be restored, unless by name

    async def choose(
        self,
        identity: Identity,
        lineage: Lineage | None,
        number: int = 0,
        version: str = "",
        known: Manifest | None = None,
        step: int | None = None,
    ) -> Chosen:
        """The newest snapshot of a run (of any run without a lineage), or the one of a number or a version.

        A version names a complete checkpoint in the bucket. A step names the snapshot that
        ``completeness.last_with`` does, of which newer ones are left out; with a number, that step of that snapshot.
        Without any of these the bucket may name one itself, which a job that asks for its newest is given then.

        ``known`` is one that need not be read: reading takes seconds where there are a hundred thousand files.

        One whose manifest is damaged everywhere is passed over, and said so in the log; one that only cannot be
        had now never is. Raises NotFound (no such number), RunMismatch, TierUnavailable (there is, or may be, a
        newer one or the one of the number, and who has it could not be asked).
        """
        holdings = await self._look(identity, version, is_patient=lineage is not None and not number)
        is_forced = bool(holdings.forced) and not number and (lineage is not None or bool(version))
        if is_forced:
            number = holdings.forced
            log.info("restore.forced", snapshot=f"{identity}@{number}", version=version or "restore.version")
        numbers = sorted({one for _, several in holdings.places for one in several}, reverse=True)
        if number and number not in numbers:
            raise _no_such(identity, number, numbers, holdings)
        other_runs: set[str] = set()
        other_steps: set[int] = set()
        passed_over: list[int] = []
        beside, beside_epoch = None, 0
        for candidate in [number] if number else numbers:
            snapshot = SnapshotId(identity, candidate)
            if beside is not None and snapshot.epoch < beside_epoch:
                break
            places = tuple(place for place, several in holdings.places if candidate in several)
            is_known = known is not None and known.id == snapshot
            manifest = known if is_known else await self._read_manifest(snapshot, places)
            if manifest is None or (not number and step is None and self._is_bad(manifest)):
                passed_over.append(candidate)
                continue
            if step is not None and step not in (steps := Saved.of(manifest).steps):
                other_steps |= set(steps)
                continue
            if lineage is None or (number and manifest.lineage.run == lineage.run) or _is_of(manifest, lineage):
                if lineage is not None:
                    _check_shape(manifest, lineage)
                if not number and step is None and (holdings.is_partial or candidate < holdings.unasked):
                    raise TierUnavailable(_newer_elsewhere(snapshot, holdings))
                if not number and step is None and holdings.highest > max(numbers):
                    passed_over.insert(0, holdings.highest)
                    _tell_gone(identity, holdings)
                if step is None or step_of(manifest) == step:
                    return Chosen(manifest, places, holdings.highest, tuple(passed_over), is_forced=is_forced)
                part = as_of_step(manifest, step)
                beside = Chosen(part, places, holdings.highest, tuple(passed_over), is_part=True)
                beside_epoch = snapshot.epoch
                continue
            other_runs.add(manifest.lineage.run)
        if beside is not None:
            return beside
        if step is not None:
            there = ", ".join(map(str, sorted(other_steps))) or "none"
            raise NotFound(f"no snapshot of {identity} is of step {step}: there are those of {there}")
        if number and other_runs:
            named = "" if not is_forced else f", and named by {version or 'restore.version beside its record'}"
            raise NotFound(
                f"{identity}@{number} is of run {', '.join(other_runs)}{named}: name that run to restore it"
                + (", or delete restore.version" if is_forced and not version else "")
            )
        if number:
            raise NotFound(
                f"{identity}@{number} is damaged wherever it is: name another; `fuse-tier verify` tells more"
            )
        if lineage is None:
            _check_all_were_asked(identity, holdings)
        elif holdings.silent:
            raise TierUnavailable(
                f"{identity}: no snapshot was found, but {' and '.join(holdings.silent)} could not be asked: "
                "beginning empty could lose what is there; try again when it answers"
            )
        elif holdings.highest > max(numbers, default=0):
            _tell_gone(identity, holdings)
        return Chosen(None, (), holdings.highest, other_runs=tuple(sorted(other_runs)))

    def _is_bad(self, manifest: Manifest) -> bool:
        job, step = Job.of(manifest.id.identity), step_of(manifest)
        marks = [mark for mark in self._marks() if mark.job == job]
        return any(mark.is_on(manifest.lineage.run, step, manifest.id.number) for mark in marks)

    async def _look(self, identity: Identity, version: str, *, is_patient: bool) -> Holdings:
        """What everybody has. Who is away, and has or may have a newer copy than all others, is waited for a while.

        A worker that starts again is away for seconds; what was acknowledged because of its copy must not be passed
        over for that. What only an owner had that is gone was not copied: a job that goes on elsewhere does not wait.
        """
        patient_until = trio.current_time() + Deadline.RETURN
        is_told = False
        while True:
            holdings = await self._places.holdings(identity, version)
            newest = max((numbers[-1] for _, numbers in holdings.places if numbers), default=0)
            is_awaited = holdings.is_partial or holdings.awaited > newest
            if not is_awaited or not is_patient or trio.current_time() > patient_until:
                return holdings
            if not is_told:
                is_told = True
                log.info(
                    "restore.holder_awaited",
                    snapshot=f"{identity}@{holdings.awaited or '?'}",
                    silent=list(holdings.silent),
                    seconds=Deadline.RETURN,
                )
            await trio.sleep(_LOOK_SECONDS)

    async def _read_manifest(self, snapshot: SnapshotId, places: Collection[Tier]) -> Manifest | None:
        """None if all places have lost it, or have it damaged. Raises TierUnavailable if it may be had later."""
        hopeful: TierError | None = None
        for place in places:
            try:
                return await place.manifest(snapshot)
            except TierError as error:
                metrics.error("manifest")
                log.warning(
                    "restore.manifest_unreadable", snapshot=str(snapshot), place=place.place, reason=str(error)
                )
                if not isinstance(error, Damaged | NotFound):
                    hopeful = error
        if hopeful is not None:
            raise TierUnavailable(
                f"{snapshot} cannot be had now ({hopeful}), and an older one is not taken in its place unasked: "
                "try again when it answers, or name another snapshot"
            )
        return None


def _is_of(manifest: Manifest, lineage: Lineage) -> bool:
    return manifest.lineage.run == lineage.run


def _check_shape(manifest: Manifest, lineage: Lineage) -> None:
    had = manifest.lineage
    for what, before, asked in (
        ("world size", had.world_size, lineage.world_size),
        ("topology", had.topology, lineage.topology),
    ):
        if before and asked and before != asked:
            raise RunMismatch(
                f"{manifest.id} was saved with {what} {before}, but {asked} is asked for: it is not restored. "
                "Start the job in its old shape, or say `restore: latest` to have each replica's own files, or name "
                "another run to begin empty"
            )
    if had.owner_uid and lineage.owner_uid and had.owner_uid != lineage.owner_uid:
        log.info(
            "volume.resumed_by_another_owner", snapshot=str(manifest.id), before=had.owner_uid, now=lineage.owner_uid
        )


def _no_such(identity: Identity, number: int, numbers: list[int], holdings: Holdings) -> TierError:
    """What is to be said of a number that nobody listed who could be asked."""
    known = ", ".join(str(one) for one in numbers[:10]) or "none"
    found = f"no tier has snapshot {number} of {identity}: those found are {known}"
    if not (missing := _unasked(holdings)):
        return NotFound(found)
    return TierUnavailable(f"{found}; {missing} could not be asked: try again when it answers")


def _check_all_were_asked(identity: Identity, holdings: Holdings) -> None:
    if missing := _unasked(holdings):
        raise TierUnavailable(
            f"no snapshot of {identity} was found, but {missing} could not be asked: try again when it answers"
        )


def _unasked(holdings: Holdings) -> str:
    """Who did not answer now, and who has something as far as is known and is away."""
    return " and ".join((*holdings.silent, *holdings.away))


def _tell_gone(identity: Identity, holdings: Holdings) -> None:
    if holdings.away:
        log.warning("restore.newest_gone", snapshot=f"{identity}@{holdings.highest}", nodes=list(holdings.away))


def _newer_elsewhere(snapshot: SnapshotId, holdings: Holdings) -> str:
    silent = " and ".join(holdings.silent)
    has = "may have a newer one" if holdings.is_partial else f"should have {holdings.unasked}"
    return (
        f"{snapshot} is the newest that was found, but {silent} could not be asked and {has}: try again when it "
        "answers, or name a snapshot"
    )
