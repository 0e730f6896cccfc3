"""What nodes and the coordinator say to each other when a job of several ranks is started again.

Values only: which step it is that all ranks go on from is decided in ``coordinate/choosing.py`` and kept in
``coordinate/restarts.py``; what a node does then is ``replicate/agreeing.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fuse_tier.checkpoints import Job
from fuse_tier.epochs import epoch_of
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage

MOST_BRANCH_POINTS = 32
"""How many earlier ones are remembered: of a job that has come past as many, what is older is long gone."""

_NOTHING = -1  # in place of a step: no files


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """A volume went on from a step, or from no files: what it had beyond, of before, was given up then."""

    epoch: int  # under which it was owned then: what has a lower one is of before
    step: int | None

    def gives_up(self, step: int, epoch: int) -> bool:
        """Whether what was saved of a step, under an epoch, counts for nothing since."""
        return epoch < self.epoch and step > self.rank

    @property
    def rank(self) -> int:
        """The step, to be compared."""
        return _NOTHING if self.step is None else self.step


@dataclass(frozen=True, slots=True)
class Resumption:
    """From what a volume's files have gone on: all ranks that joined one restart have the same step."""

    run: str
    restart: int  # grows
    step: int | None  # None: with no files
    epoch: int  # under which the volume was owned then: what has a lower one is of the life before
    wish: str = ""  # of a person's, which was followed then or before
    is_over: bool = False  # nobody is at work with these files now
    before: tuple[BranchPoint, ...] = ()  # earlier ones, as far as they gave up more; both numbers grow

    @property
    def branch_points(self) -> tuple[BranchPoint, ...]:
        """All that is remembered, this one last."""
        return (*self.before, BranchPoint(self.epoch, self.step))

    def gives_up(self, step: int, epoch: int) -> bool:
        """Whether what was saved of a step, under an epoch, is of a life of the job that was gone back from."""
        return any(one.gives_up(step, epoch) for one in self.branch_points)

    def after(self, earlier: Iterable[BranchPoint]) -> Resumption:
        """This one, which remembers also what others before it gave up."""
        kept: list[BranchPoint] = []
        lowest = BranchPoint(self.epoch, self.step)
        for one in sorted({*self.before, *earlier}, key=lambda one: (-one.epoch, one.rank)):
            if one.epoch < self.epoch and one.rank < lowest.rank:
                kept.append(one)
                lowest = one
        return replace(self, before=tuple(reversed(kept[:MOST_BRANCH_POINTS])))


@dataclass(frozen=True, slots=True)
class Mark:
    """Somebody has said that a step of a run is not to be restored again."""

    job: Job
    run: str
    step: int
    epoch: int  # of the moment: a step of that number that is saved under a later one is another

    def is_on(self, run: str, step: int | None, number: int) -> bool:
        """Whether a snapshot is meant."""
        return run == self.run and step == self.step and epoch_of(number) <= self.epoch


@dataclass(frozen=True, slots=True)
class Backup:
    """A complete checkpoint in the bucket, and the snapshot of the asking volume that is part of it."""

    step: int
    number: int
    epoch: int  # the lowest of its snapshots
    name: str = ""  # the date that it is called by, for people
    partner: str = ""  # whose part it is, if the volume has none of its own; with number 0 it is still to be said


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person has written on a job: that all of it goes back to a step, or to a backup by its date. Once."""

    text: str  # another one is another wish
    step: int | None = None
    backup: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A node that is to mount a volume of a job asks from which step it goes on.

    Of a job whose replicas were declared to hold the same state a rank may have lost its part, and take a partner's.
    Whose that is can be told when the job has said which rank it is, which may be after the mount: until then the
    step alone is agreed on, and with ``fills`` it is asked for what belongs to it.
    """

    identity: Identity
    lineage: Lineage  # its world size says how many ranks the job has
    backups: tuple[Backup, ...] = ()  # in the bucket, of this lineage, oldest first
    bucket_silent: str = ""  # why the bucket could not be asked; empty: it was, or there is none
    lacking: tuple[int, ...] = ()  # snapshots of this volume that are damaged, or that nobody has
    forced: int | None = None  # the step that a person wants
    fills: int = 0  # the restart that the volume has joined without getting its files
    lacking_partners: tuple[SnapshotId, ...] = ()  # as ``lacking``, of those that were told in its place


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: ``number`` of ``step``, of the volume's own or of its ``partner``'s; with ``number`` 0 no files,
    or none yet, where there is a step (see ``Question``).

    ``restart`` 0 says that no tree of the job names a step: each rank takes its newest snapshot, and nothing is
    joined.
    """

    restart: int
    step: int | None = None
    number: int = 0
    others: tuple[str, ...] = ()  # replicas that are mounted, and have not joined: they go on as they are
    wish: str = ""  # of a person's, that is followed with this, or was before
    partner: str = ""  # the replica whose snapshot is taken; empty: the volume's own
    branch_points: tuple[BranchPoint, ...] = ()  # of the volume, as far as is known, whichever nodes had it

    def followed(self, run: str, epoch: int, known: Iterable[BranchPoint] = ()) -> Resumption:
        """From what a volume has gone on that has followed this, with what its node has ``known`` of it besides.

        What it was given counts from then on, though the job had gone back from it: a person may name a backup.
        """
        points = [*self.branch_points, *known]
        if self.number and not self.partner and self.step is not None:
            points = [one for one in points if not one.gives_up(self.step, epoch_of(self.number))]
        return Resumption(run, self.restart, self.step, epoch, self.wish).after(points)
