"""What of a volume's snapshots is set aside, and what stays for the other ranks of its job."""

from __future__ import annotations

from fuse_tier.checkpoints import Saved
from fuse_tier.epochs import number_before
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.replicate.aside import kept_aside, set_aside, stays_for_job
from fuse_tier.restarts import Resumption

LLAMA = Identity.parse("default/llama/0")
RUN = Lineage("llama", world_size=2)


def saved(*steps: int | None, first: int = 1) -> list[Saved]:
    return [Saved(SnapshotId(LLAMA, number), RUN, step, 0) for number, step in enumerate(steps, first)]


def test_a_step_beyond_a_later_and_lower_one_is_set_aside() -> None:
    assert set_aside(saved(100, 200, 300, 200)) == {3: 200}
    assert set_aside(saved(100, 200, 300)) == {}
    assert set_aside(saved(100, None, 200)) == {}


def test_what_a_tree_went_back_from_is_set_aside_before_anything_is_saved_again() -> None:
    resumption = Resumption("llama", 7, 100, epoch=1)
    assert set_aside(saved(100, 200), resumption) == {2: 100}
    assert set_aside(saved(100, 200), Resumption("llama", 7, None, epoch=1)) == {1: -1, 2: -1}
    assert set_aside(saved(200, first=number_before(1) + 1), resumption) == {}


def test_what_a_tree_went_back_from_before_stays_set_aside_though_nothing_was_saved_at_that_step() -> None:
    before = Resumption("llama", 7, 100, epoch=1)
    resumption = Resumption("llama", 8, 300, epoch=2).after(before.branch_points)
    listed = [*saved(100, 200), *saved(300, 400, first=number_before(1) + 1)]
    assert set_aside(listed, resumption) == {2: 100, number_before(1) + 2: 300}


def test_what_is_set_aside_stays_until_a_later_step_is_complete() -> None:
    listed = saved(100, 200, 300, 200, 250)
    assert kept_aside(listed, [2]) == {3}
    assert kept_aside(listed, [4]) == {3}
    assert kept_aside(listed, [5]) == frozenset()


def test_what_was_complete_before_a_job_went_back_further_takes_nothing_away_that_is_set_aside() -> None:
    # It went back from 300 to 200, and saved that state again; then, 200 being bad, to 100.
    listed = saved(100, 200, 300, 200)
    assert kept_aside(listed, [4], Resumption("llama", 7, 100, epoch=1)) == {2, 3, 4}


def test_a_part_of_a_complete_checkpoint_stays_and_those_that_may_be_next() -> None:
    listed = saved(100, 200, 300, 400, 500)
    assert stays_for_job(listed, [1]) == {1, 2, 3}
    assert stays_for_job(listed, [5]) == {5}
    assert stays_for_job(listed, []) == {1, 2}
