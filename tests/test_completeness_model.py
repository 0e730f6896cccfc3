"""A job that saves, crashes and goes back, whose ranks bring what they have at their own pace, to a bucket where old
ones are given up.

A step that comes again after the job went back cannot be told from what it was before by its name. So for as long
as a rank has not brought its own, a record may name its old one; never after.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuse_tier.checkpoints import Checkpoint, Job, Saved
from fuse_tier.completeness import newest_complete
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.replicate.retention import Keep, plan_job_retention

JOB = Job("default", "llama")
RANKS = ("0", "1")


@dataclass
class Rank:
    """What one rank has saved: number, step, and in which life of the job that step was computed."""

    saved: list[tuple[int, int, int]] = field(default_factory=list)
    uploading: tuple[int, int, int] | None = None
    has_restarted: bool = True

    def save(self, step: int, life: int) -> None:
        self.saved.append((self.saved[-1][0] + 1 if self.saved else 1, step, life))


class Training(RuleBasedStateMachine):
    """The job, and a bucket of which one node says what is complete, now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.ranks = {name: Rank() for name in RANKS}
        self.life = 0
        self.life_of_step = 0
        self.step = 0
        self.clock = 1_700_000_000 * 10**9
        self.bucket: dict[SnapshotId, Saved] = {}
        self.lives: dict[SnapshotId, int] = {}
        self.records: dict[str, Checkpoint] = {}

    @precondition(lambda self: all(rank.has_restarted for rank in self.ranks.values()))
    @rule()
    def train(self) -> None:
        self.step += 1
        for rank in self.ranks.values():
            rank.save(self.step, self.life)

    @rule(name=st.sampled_from(RANKS))
    def begin_upload(self, name: str) -> None:
        """Of the newest only: what was superseded is skipped."""
        rank = self.ranks[name]
        if (
            rank.uploading is None
            and rank.saved
            and SnapshotId(JOB.identity(name), rank.saved[-1][0]) not in self.bucket
        ):
            rank.uploading = rank.saved[-1]

    @rule(name=st.sampled_from(RANKS))
    def finish_upload(self, name: str) -> None:
        rank = self.ranks[name]
        if rank.uploading is not None:
            number, step, life = rank.uploading
            rank.uploading = None
            self.clock += 60 * 10**9
            snapshot = SnapshotId(JOB.identity(name), number)
            self.bucket[snapshot] = Saved(snapshot, Lineage("llama"), step, self.clock)
            self.lives[snapshot] = life

    @property
    def newest(self) -> Checkpoint | None:
        return max(self.records.values(), key=lambda record: record.created_ns, default=None)

    def lives_in(self, record: Checkpoint) -> set[int]:
        return {self.lives[one] for one in record.ids}

    @precondition(lambda self: self.newest is not None and len(self.lives_in(self.newest)) == 1)
    @rule()
    def crash(self) -> None:
        """All ranks go back to the newest complete checkpoint, each when its pod has started again."""
        assert self.newest is not None
        self.life += 1
        self.step = self.newest.step or 0
        (self.life_of_step,) = self.lives_in(self.newest)
        for rank in self.ranks.values():
            rank.has_restarted = False

    @rule(name=st.sampled_from(RANKS))
    def restart(self, name: str) -> None:
        rank = self.ranks[name]
        if not rank.has_restarted:
            rank.has_restarted = True
            if rank.saved[-1][1:] != (self.step, self.life_of_step):  # else its tree is as it was
                rank.save(self.step, self.life_of_step)

    @rule(name=st.sampled_from(RANKS))
    def upload(self, name: str) -> None:
        self.begin_upload(name)
        self.finish_upload(name)

    @precondition(lambda self: all(rank.has_restarted for rank in self.ranks.values()))
    @rule()
    def save_everywhere(self) -> None:
        self.train()
        for name in RANKS:
            self.upload(name)
        self.look()

    @rule()
    def look(self) -> None:
        """What the steward does."""
        found = newest_complete(JOB, list(self.bucket.values()), RANKS, self.records.values())
        if found is not None:
            self.records[f"{len(self.records)}-{found.created_ns}"] = found
        plan = plan_job_retention(dict(self.bucket), self.records, Keep(2))
        for name in plan.records:
            del self.records[name]
        for snapshot in plan.snapshots:
            del self.bucket[snapshot]

    @precondition(lambda self: all(rank.has_restarted and rank.saved for rank in self.ranks.values()))
    @rule()
    def bring_everything(self) -> None:
        for name in RANKS:
            self.finish_upload(name)
            self.upload(name)
        self.look()
        assert self.newest is not None
        assert (self.newest.step, len(self.lives_in(self.newest))) == (self.step, 1)
        assert self.newest.snapshots == {name: self.ranks[name].saved[-1][0] for name in RANKS}

    @invariant()
    def a_record_is_of_one_step_and_all_of_it_is_there(self) -> None:
        for record in self.records.values():
            assert record.snapshots.keys() == set(RANKS)
            assert record.ids <= self.bucket.keys()
            assert {self.bucket[one].step for one in record.ids} == {record.step}

    @invariant()
    def nothing_goes_back_to_before_the_newest_record(self) -> None:
        """A rank that has not yet gone back is not taken for one that has."""
        ordered = sorted(self.records.values(), key=lambda record: record.created_ns)
        for before, after in itertools.pairwise(ordered):
            assert all(after.snapshots[name] >= before.snapshots[name] for name in RANKS)

    @invariant()
    def dates_tell_the_order(self) -> None:
        dates = [record.created_ns for record in self.records.values()]
        assert len(set(dates)) == len(dates)


TestTraining = Training.TestCase
TestTraining.settings = settings(stateful_step_count=60)


@given(st.integers(1, 5))
def test_a_job_that_saves_and_brings_everything_always_has_its_newest_step_recorded(steps: int) -> None:
    training = Training()
    for _ in range(steps):
        training.train()
        for name in RANKS:
            training.begin_upload(name)
            training.finish_upload(name)
        training.look()
    assert max(record.step or 0 for record in training.records.values()) == steps
