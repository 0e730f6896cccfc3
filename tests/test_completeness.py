"""When a job's snapshots are a checkpoint that counts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.checkpoints import Checkpoint, Job, Saved
from fuse_tier.completeness import find_complete, newest_complete
from fuse_tier.epochs import number_before
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Lineage

JOB = Job("default", "llama")
RUN = Lineage("llama", world_size=2)


def saved(replica: str, number: int, step: int | None, lineage: Lineage = RUN) -> Saved:
    return Saved(SnapshotId(JOB.identity(replica), number), lineage, step, 1_700_000_000_000_000_000 + number)


def steps(found: tuple[Checkpoint, ...]) -> list[int | None]:
    return [checkpoint.step for checkpoint in found]


def test_a_step_counts_when_every_replica_has_it() -> None:
    listed = [saved("0", 1, 100), saved("1", 1, 100), saved("0", 2, 200)]
    assert steps(find_complete(JOB, listed)) == [100]
    assert steps(find_complete(JOB, [*listed, saved("1", 2, 200)])) == [100, 200]


def test_of_the_snapshots_of_one_save_the_last_one_counts() -> None:
    listed = [saved("0", 1, 100), saved("0", 2, 100), saved("0", 3, 100)]
    (found,) = find_complete(JOB, listed)
    assert found.snapshots == {"0": 3}
    assert found.created_ns == listed[-1].created_ns


def test_a_replica_that_is_mounted_and_has_saved_nothing_is_missing() -> None:
    assert find_complete(JOB, [saved("0", 1, 100)], expected={"0", "1"}) == ()


def test_a_replica_that_was_lost_keeps_later_steps_from_counting() -> None:
    listed = [saved("0", 1, 100), saved("1", 1, 100), saved("0", 2, 200)]
    assert steps(find_complete(JOB, listed, expected={"0"})) == [100]


def test_another_run_or_shape_of_the_job_is_another_job() -> None:
    before = [saved(replica, 1, 100, Lineage("old")) for replica in "0123"]
    now = [saved("0", 5, 10), saved("1", 5, 10)]
    assert steps(find_complete(JOB, [*before, *now])) == [10]
    smaller = [saved("0", 9, 20, replace(RUN, world_size=1))]
    assert [found.snapshots for found in find_complete(JOB, [*now, *smaller])] == [{"0": 9}]


def test_what_a_node_saves_that_was_counted_out_makes_no_other_job_of_it_however_late() -> None:
    now = [saved("0", number_before(8) + 1, 10), saved("1", number_before(8) + 1, 10)]
    late = replace(saved("0", number_before(7) + 99, 20, Lineage("old")), created_ns=2 * 10**18)
    assert steps(find_complete(JOB, [*now, late])) == [10]


def test_without_steps_only_a_job_of_one_volume_has_checkpoints() -> None:
    (found,) = find_complete(JOB, [saved("0", 1, None), saved("0", 2, None)])
    assert (found.step, found.snapshots) == (None, {"0": 2})
    assert find_complete(JOB, [saved("0", 1, None), saved("1", 1, None)]) == ()


def test_a_job_that_went_back_to_an_earlier_step_goes_on_from_there() -> None:
    listed = [saved(replica, number, step) for replica in "01" for number, step in ((1, 100), (2, 200), (3, 100))]
    newest = newest_complete(JOB, listed)
    assert newest is not None
    assert (newest.step, newest.snapshots) == (100, {"0": 3, "1": 3})


def test_a_step_that_a_rank_has_given_up_is_no_part_of_that_step_when_it_comes_again() -> None:
    listed = [saved("0", 1, 200), saved("1", 1, 200), saved("0", 2, 300)]  # rank 1 dies, both go back to 200
    again = [saved("0", 3, 200), saved("1", 2, 200), saved("1", 3, 300)]
    newest = newest_complete(JOB, [*listed, *again])
    assert newest is not None
    assert (newest.step, newest.snapshots) == (200, {"0": 3, "1": 2})
    newest = newest_complete(JOB, [*listed, *again, saved("0", 4, 300)])
    assert newest is not None
    assert (newest.step, newest.snapshots) == (300, {"0": 4, "1": 3})


def test_a_rank_that_has_not_yet_gone_back_is_not_taken_for_one_that_has() -> None:
    listed = [saved(replica, number, step) for replica in "01" for number, step in ((1, 100), (2, 200))]
    recorded = find_complete(JOB, listed)
    assert newest_complete(JOB, [*listed, saved("0", 3, 100)], recorded=recorded) is None
    newest = newest_complete(JOB, [*listed, saved("0", 3, 100), saved("1", 3, 100)], recorded=recorded)
    assert newest is not None
    assert (newest.step, newest.snapshots) == (100, {"0": 3, "1": 3})


def test_what_is_recorded_is_not_recorded_again_and_what_is_new_has_a_later_date_on_any_clock() -> None:
    listed = [saved(replica, 1, 100) for replica in "01"]
    (first,) = find_complete(JOB, listed)
    assert newest_complete(JOB, listed, recorded=[first]) is None
    ahead = replace(first, created_ns=first.created_ns + 86_400 * 10**9)
    second = newest_complete(JOB, [*listed, *(saved(replica, 2, 200) for replica in "01")], recorded=[ahead])
    assert second is not None
    assert second.created_ns > ahead.created_ns


def test_nothing_listed_is_nothing_complete() -> None:
    assert newest_complete(JOB, []) is None


@given(st.lists(st.tuples(st.sampled_from("012"), st.integers(1, 9), st.sampled_from([None, 1, 2, 3])), max_size=20))
def test_whatever_is_listed_a_checkpoint_has_every_replica_at_one_step(
    rows: list[tuple[str, int, int | None]],
) -> None:
    unique = {(replica, number): step for replica, number, step in rows}
    listed = [saved(replica, number, step) for (replica, number), step in unique.items()]
    for checkpoint in find_complete(JOB, listed):
        assert checkpoint.snapshots.keys() == {one.id.identity.replica for one in listed}
        for replica, number in checkpoint.snapshots.items():
            assert unique[replica, number] == checkpoint.step
            later = [step for (name, other), step in unique.items() if name == replica and other > number]
            assert checkpoint.step not in later
            assert all(step is None or checkpoint.step is None or step > checkpoint.step for step in later)
