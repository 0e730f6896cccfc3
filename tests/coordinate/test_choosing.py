"""From which step the ranks of a job go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_tier.checkpoints import Job, Saved
from fuse_tier.coordinate.choosing import Current, Known, Parts, choose
from fuse_tier.coordinate.eligible import bad_parts
from fuse_tier.coordinate.eligible import parts as parts_of
from fuse_tier.coordinate.jobs import KnownJob
from fuse_tier.epochs import number_before
from fuse_tier.errors import FuseTierError, NotFound, RunMismatch, TierRefused, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.restarts import Backup, Mark, Question, Resumption, Verdict

RUN = Lineage("llama", world_size=2)
NEW = 50


def identity(replica: str) -> Identity:
    return Identity("default", "llama", replica)


def parts(**steps: list[int | None]) -> dict[str, list[Saved]]:
    """Of each replica (``r0``, ``r1``) the steps in the order in which they were saved."""
    return {
        name[1:]: [
            Saved(SnapshotId(identity(name[1:]), number), RUN, step, 0) for number, step in enumerate(several, 1)
        ]
        for name, several in steps.items()
    }


def knows(here: Parts, **more: object) -> Known:
    return replace(Known(here, here, here), **more)  # type: ignore[arg-type]


def ask(replica: str = "0", **more: object) -> Question:
    return replace(Question(identity(replica), RUN), **more)  # type: ignore[arg-type]


def at_work(**steps: int | None) -> Mapping[str, Resumption]:
    return {name[1:]: Resumption("llama", 7, step, 1) for name, step in steps.items()}


def test_the_newest_step_is_taken_that_all_ranks_have() -> None:
    known = knows(parts(r0=[100, 200, 300], r1=[100, 200]))
    assert choose(ask(), known, None, NEW) == Verdict(NEW, 200, 2)


def tree(replica: str, number: int, *steps: int) -> Saved:
    """A snapshot of a job that keeps several steps."""
    return Saved(SnapshotId(identity(replica), number), RUN, steps[-1], 0, older=steps[:-1])


def test_a_step_is_taken_that_a_rank_has_beside_newer_ones_alone() -> None:
    known = knows({"0": [tree("0", 3, 100, 200, 300)], "1": [tree("1", 2, 100, 200)]})
    assert choose(ask("0"), known, None, NEW) == Verdict(NEW, 200, 3)
    assert choose(ask("1"), known, None, NEW) == Verdict(NEW, 200, 2)
    assert choose(ask("0", forced=100), known, None, NEW) == Verdict(NEW, 100, 3)
    with pytest.raises(NotFound, match=r"those that are: 100, 200$"):
        choose(ask("0", forced=300), known, None, NEW)


def test_the_snapshot_whose_newest_the_step_is_goes_before_those_that_have_it_beside_newer_ones() -> None:
    several = [tree("0", 2, 100, 200), tree("0", 3, 100, 200, 300), tree("0", 4, 200, 300, 400)]
    known = knows({"0": several, "1": [tree("1", 2, 100, 200)]})
    assert choose(ask("0"), known, None, NEW) == Verdict(NEW, 200, 2)
    # The newest complete step, though of an older one a later snapshot is all that there is.
    known = knows({"0": [tree("0", 4, 100, 200, 300)], "1": [tree("1", 2, 100, 200), tree("1", 9, 200)]})
    assert choose(ask("1"), known, None, NEW) == Verdict(NEW, 200, 9)


def test_of_a_tree_with_several_steps_a_bad_or_given_up_one_counts_for_nothing_and_the_others_stay() -> None:
    whole = tree("0", 3, 100, 200, 300)
    job = KnownJob(saved={"a": {identity("0"): (whole,)}})
    assert parts_of(job, RUN, ["a"]) == {"0": [whole]}
    job.marks.add(Mark(Job("default", "llama"), "llama", 300, 0))
    job.marks.add(Mark(Job("default", "llama"), "llama", 100, 0))
    assert parts_of(job, RUN, ["a"]) == {"0": [replace(whole, step=200, older=())]}
    assert bad_parts(job) == {(whole.id, 300), (whole.id, 100)}
    job.marks.clear()
    job.last["llama", identity("0")] = Resumption("llama", 7, 200, 1)
    assert parts_of(job, RUN, ["a"]) == {"0": [replace(whole, step=200, older=(100,))]}
    job.damaged.add(whole.id)
    assert parts_of(job, RUN, ["a"]) == {}
    assert bad_parts(job) == {(whole.id, step) for step in (100, 200, 300)}


def test_what_a_rank_went_back_from_is_given_up_beside_other_steps_too() -> None:
    several = [tree("0", 3, 100, 200, 300), tree("0", 4, 100)]
    known = knows({"0": several, "1": [tree("1", 3, 100, 200, 300)]})
    assert choose(ask("0"), known, None, NEW) == Verdict(NEW, 100, 4)


def test_a_bucket_that_is_silent_may_have_the_newer_step_of_a_part_that_is_here_beside_others() -> None:
    parts_here = {"0": [tree("0", 3, 100, 200)], "1": [tree("1", 2, 100)]}
    known = knows(parts_here, brought={"0": 3, "1": 3})
    with pytest.raises(TierUnavailable, match="it may have a newer complete checkpoint"):
        choose(ask(bucket_silent="gs://x is away"), known, None, NEW)
    known = knows(parts_here, brought={"0": 3, "1": 2})
    assert choose(ask(bucket_silent="gs://x is away"), known, None, NEW).step == 100


def test_a_step_beyond_one_that_a_rank_went_back_to_is_given_up() -> None:
    known = knows(parts(r0=[100, 200, 300, 100], r1=[100, 200, 300]))
    assert choose(ask(), known, None, NEW) == Verdict(NEW, 100, 4)


def test_the_bucket_gives_what_ram_has_not() -> None:
    known = knows(parts(r0=[100, 200], r1=[100]))
    assert choose(ask(backups=(Backup(200, 2, 0),)), known, None, NEW) == Verdict(NEW, 200, 2)


def test_a_job_that_went_back_does_not_take_what_the_bucket_had_before() -> None:
    known = knows(parts(r0=[100, 200, 100], r1=[100, 200, 100]))
    assert choose(ask(backups=(Backup(200, 2, 0),)), known, None, NEW) == Verdict(NEW, 100, 3)


def test_whoever_comes_later_gets_the_step_of_the_restart_that_has_begun() -> None:
    known = knows(parts(r0=[100, 200], r1=[100, 200]), going_on=at_work(r0=100))
    forced = Current(7, 100, frozenset({"0"}), is_forced=True)
    here = knows(parts(r0=[100], r1=[100, 200]), going_on=at_work(r0=100))
    assert choose(ask("1"), here, Current(7, 100, frozenset({"0"})), NEW) == Verdict(7, 100, 1)
    assert choose(ask("1", forced=100), known, forced, NEW) == Verdict(7, 100, 1)


def test_a_restart_gives_nobody_a_snapshot_of_its_step_that_was_given_up_before() -> None:
    known = knows(parts(r0=[100, 200, 100], r1=[100, 200]))
    verdict = choose(ask(), known, Current(7, 200, frozenset()), NEW)
    assert (verdict.step, verdict.number) == (100, 3)


def test_a_restart_is_over_when_a_newer_step_has_been_completed_since() -> None:
    known = knows(parts(r0=[100, 200], r1=[100, 200]), going_on=at_work(r0=100))
    verdict = choose(ask("1"), known, Current(7, 100, frozenset({"0"})), NEW)
    assert (verdict.restart, verdict.step) == (NEW, 200)


def test_a_rank_that_has_joined_a_restart_begins_another() -> None:
    known = knows(parts(r0=[100], r1=[100]))
    assert choose(ask(), known, Current(7, 100, frozenset({"0"})), NEW).restart == NEW


def test_nobody_joins_a_restart_since_which_somebody_saved_whose_node_has_forgotten_it() -> None:
    first = number_before(7) + 1
    saved = [
        Saved(SnapshotId(identity("0"), number), RUN, step, 0) for number, step in ((first, 100), (first + 1, 200))
    ]
    begun = Current(7, None, frozenset({"1"}), is_heard=True)
    with pytest.raises(TierRefused, match="no step of default/llama"):
        choose(ask("0"), knows({"0": saved}, wherever={"0": saved}), begun, NEW)


def test_when_the_step_of_a_restart_is_lost_nobody_goes_back_behind_one_who_has_begun() -> None:
    known = knows(parts(r0=[100, 200], r1=[100]), going_on=at_work(r0=200))
    with pytest.raises(TierUnavailable, match=r"go back to step 100, but replica 0 .* from step 200 and is mounted"):
        choose(ask("1"), known, Current(7, 200, frozenset({"0"})), NEW)


def test_when_the_step_of_a_restart_is_lost_and_nobody_has_begun_it_is_chosen_again() -> None:
    known = knows(parts(r0=[100, 200], r1=[100]))
    assert choose(ask("1"), known, Current(7, 200, frozenset()), NEW) == Verdict(NEW, 100, 1)


def test_a_node_that_went_away_a_moment_ago_is_waited_for() -> None:
    here, both = parts(r0=[100, 200], r1=[100]), parts(r0=[100, 200], r1=[100, 200])
    with pytest.raises(TierUnavailable, match="step 200 of default/llama is waited for"):
        choose(ask(), Known(here, both, both), None, NEW)


def test_nothing_is_begun_anew_while_the_bucket_cannot_be_asked() -> None:
    with pytest.raises(TierUnavailable, match="it may have a newer complete checkpoint"):
        choose(ask(bucket_silent="the bucket does not answer"), knows({}), None, NEW)
    known = knows(parts(r0=[100], r1=[100]), brought={"0": 1, "1": 1})
    assert choose(ask(bucket_silent="the bucket does not answer"), known, None, NEW).step == 100
    newer = knows(parts(r0=[100], r1=[100]), brought={"0": 2, "1": 2})
    with pytest.raises(TierUnavailable, match="it may have a newer complete checkpoint"):
        choose(ask(bucket_silent="the bucket does not answer"), newer, None, NEW)


def test_a_first_save_that_was_never_complete_counts_for_nothing() -> None:
    assert choose(ask(), knows(parts(r0=[100])), None, NEW) == Verdict(NEW, None, 0)


def test_steps_of_which_none_is_complete_are_not_given_up_in_silence() -> None:
    with pytest.raises(TierRefused, match=r"no step of default/llama .* is complete, of 2 ranks: 0: 100, 200; 1: no"):
        choose(ask("1"), knows(parts(r0=[100, 200], r1=[None])), None, NEW)


def test_a_job_whose_trees_name_no_step_takes_each_ranks_newest() -> None:
    assert choose(ask(), knows(parts(r0=[None, None], r1=[None])), None, NEW) == Verdict(0)


def test_a_job_whose_trees_name_no_step_any_more_does_not_leave_behind_who_began_from_one() -> None:
    known = knows(parts(r1=[None]), going_on=at_work(r1=0))
    with pytest.raises(TierUnavailable, match=r"the beginning, but replica 1 .* went on from step 0"):
        choose(ask("0"), known, Current(7, 0, frozenset({"0", "1"})), NEW)


def test_another_shape_of_the_job_is_refused() -> None:
    known = knows({}, other_shapes=(Lineage("llama", world_size=4, topology="1x4"),))
    with pytest.raises(RunMismatch, match="saved with 4 ranks, topology 1x4, and not with 2 ranks"):
        choose(ask(), known, None, NEW)


def test_a_forced_step_that_is_not_complete_is_refused_with_those_that_are() -> None:
    known = knows(parts(r0=[100, 200, 300], r1=[100, 200]))
    assert choose(ask(forced=100), known, None, NEW) == Verdict(NEW, 100, 1)
    with pytest.raises(NotFound, match="step 300 of default/llama is not complete: those that are: 100, 200"):
        choose(ask(forced=300), known, None, NEW)


steps = st.none() | st.integers(0, 5).map(lambda step: step * 100)
saves = st.lists(steps, max_size=6)
replicas = st.sampled_from(["0", "1"])


@given(
    st.builds(parts, r0=saves, r1=saves),
    replicas,
    st.none()
    | st.builds(Current, st.just(7), st.none() | st.integers(0, 5).map(lambda s: s * 100), st.frozensets(replicas)),
    st.booleans(),
)
def test_whoever_asks_gets_a_step_that_all_have_and_nobody_is_left_behind(
    here: dict[str, list[Saved]], replica: str, current: Current | None, others_run: bool
) -> None:
    joined = current.joined - {replica} if current is not None and others_run else frozenset()
    going_on = {one: Resumption("llama", 7, current.step, 1) for one in joined} if current is not None else {}
    try:
        verdict = choose(ask(replica), knows(here, going_on=going_on), current, NEW)
    except FuseTierError:
        return
    if verdict.step is not None:
        own = next(saved for saved in here[replica] if saved.id.number == verdict.number)
        assert own.step == verdict.step
        for other in here:
            has = any(saved.step == verdict.step for saved in here[other])
            assert has or (verdict.restart == 7 and other in going_on)
    for resumption in going_on.values():
        assert (-1 if verdict.step is None else verdict.step) >= (-1 if resumption.step is None else resumption.step)


@given(st.builds(parts, r0=saves, r1=saves))
def test_both_ranks_of_one_restart_get_the_same_step(here: dict[str, list[Saved]]) -> None:
    try:
        first = choose(ask("0"), knows(here), None, NEW)
    except FuseTierError:
        return
    if first.restart:
        begun = Current(first.restart, first.step, frozenset({"0"}))
        going_on = {"0": Resumption("llama", first.restart, first.step, 1)}
        assert choose(ask("1"), knows(here, going_on=going_on), begun, NEW + 1).step == first.step
